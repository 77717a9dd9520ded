"""What a job's rank-seconds went to, from an onlooker's and the job's own stamps: the books must say the same.

A second, coarse account, that asks nothing of the first one's files or code. It is told what a person would know who
had watched: after which step each attempt went on, why it ended, and when nothing moved any more.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.observed import Life

STEPS = "steps"
"""All of a kept step: its phases, waits, and what its first is longer by."""
START = "start"
"""From a process's begin to its first step, without the load."""
LOG = "log"
"""Between steps, and what nothing else is."""


@dataclass(frozen=True)
class End:
    """What is known of one attempt."""

    cause: str | None
    """Why its last steps were lost; None if it ended in order."""
    still: int | None = None
    """When nothing moved any more, ns; None: at its first worker's end."""


@dataclass(frozen=True)
class Truth:
    """Rank-seconds."""

    total: float
    buckets: dict[str, float]


def truth(stamps: Path, lives: Sequence[Life], ranks: int, resumed_after: Sequence[int], ends: Sequence[End]) -> Truth:
    """Of attempts of `ranks` ranks each; `resumed_after`: each one's first step less one."""
    by_pid: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for line in stamps.read_text().splitlines():
        entry = json.loads(line)
        by_pid[entry["pid"]].append((entry["what"], entry["t"]))
    ordered = sorted(lives, key=lambda life: life.begin)
    attempts = [ordered[i : i + ranks] for i in range(0, len(ordered), ranks)]
    assert len(attempts) == len(ends) == len(resumed_after), (len(lives), len(ends))
    ns: dict[str, int] = defaultdict(int)
    total, before = 0, None
    for index, (attempt, end) in enumerate(zip(attempts, ends, strict=True)):
        gone = [life.gone for life in attempt if life.gone is not None]
        assert len(gone) == ranks, attempt
        begin, over = min(life.begin for life in attempt), max(gone)
        if before is not None:
            ns["down"] += (begin - before) * ranks
            total += (begin - before) * ranks
        total += (over - begin) * ranks
        before = over
        still = end.still if end.still is not None else min(gone)
        kept = min(resumed_after[index + 1 :], default=None)
        for life in attempt:
            ns[START] += life.begin - begin
            _one_life(ns, life, by_pid[life.pid], end, still, over, resumed_after[index], kept)
    ns[LOG] = total - sum(ns.values())
    return Truth(total / 1e9, {name: value / 1e9 for name, value in ns.items()})


def _one_life(
    ns: dict[str, int],
    life: Life,
    stamps: Sequence[tuple[str, int]],
    end: End,
    still: int,
    over: int,
    resumed_after: int,
    kept: int | None,
) -> None:
    """`kept`: the last step that later attempts did not take back; None: there are no later ones."""
    at, open_since, in_step, started = life.begin, "start", False, False
    for what, t in stamps:
        name, edge = what.rsplit(" ", 1)
        kind = name.split()[0]
        if edge == "begin":
            if kind == "step" and not started:
                ns[START] += t - at
                started = True
            elif kind == "load" and not started:
                ns[START] += t - at
            at, open_since, in_step = t, kind, True
            continue
        if kind == "step":
            step = resumed_after + int(name.split()[1])
            lost = kept is not None and step > kept
            ns[f"lost_work/{end.cause}" if lost else STEPS] += t - at
        elif kind == "load":
            ns["ckpt_load"] += t - at
        else:
            ns[{"save": "ckpt_save", "eval": "eval"}[kind]] += t - at
        at, in_step = t, False
    if end.cause is None:  # in order: what follows its last work is the end
        ns["shutdown"] += over - at
        return
    died_in = open_since if in_step or not started else ""
    bucket = {"save": "ckpt_save", "load": "ckpt_load", "start": START}.get(died_in)
    ns[bucket or f"lost_work/{end.cause}"] += max(0, still - at)
    ns["detect"] += over - max(at, still)


def differences(true: Mapping[str, float], ours: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """By bucket, truth and ours; of buckets that either has."""
    return {name: (true.get(name, 0.0), ours.get(name, 0.0)) for name in sorted({*true, *ours})}
