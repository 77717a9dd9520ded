"""What a job's rank-seconds went to, from an onlooker's and the job's own stamps: the books must say the same.

A second, coarse account, that asks nothing of the first one's files or code. It is told what a person would know who
had watched: after which step each attempt went on, why it ended, and when nothing moved any more.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """Why its last steps were lost, if they were."""
    still: int | None = None
    """When nothing moved any more, ns; None: at its first worker's end."""
    damaged: int = 0
    """The step of a checkpoint that would have kept its steps, and was damaged; 0: there was none."""
    in_order: bool = False
    """Whether it ended by itself: with a cause, because another had its folder."""

    def lost(self, step: int) -> str:
        """The bucket of a step that did not stay."""
        return f"lost_work/{'ckpt_corrupt' if step <= self.damaged else self.cause}"


@dataclass(frozen=True)
class Truth:
    """Rank-seconds."""

    total: float
    buckets: dict[str, float]


@dataclass(frozen=True)
class Account:
    """Of attempts of as many ranks each."""

    ranks: int
    resumed_after: Sequence[int]
    """Each attempt's first step less one."""
    ends: Sequence[End]
    of_step: Mapping[int, str] = field(default_factory=dict)
    """The bucket of the n-th step that an attempt made, where that is not as for the others: left out, or taken
    back."""


def truth(stamps: Path, lives: Sequence[Life], account: Account) -> Truth:
    """What `stamps` and `lives` come to."""
    ranks = account.ranks
    by_pid: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for line in stamps.read_text().splitlines():
        entry = json.loads(line)
        by_pid[entry["pid"]].append((entry["what"], entry["t"]))
    ordered = sorted(lives, key=lambda life: life.begin)
    attempts = [ordered[i : i + ranks] for i in range(0, len(ordered), ranks)]
    assert len(attempts) == len(account.ends) == len(account.resumed_after), (len(lives), len(account.ends))
    ns: dict[str, int] = defaultdict(int)
    total, before = 0, None
    for index, (attempt, end) in enumerate(zip(attempts, account.ends, strict=True)):
        gone = [life.gone for life in attempt if life.gone is not None]
        assert len(gone) == ranks, attempt
        begin, over = min(life.begin for life in attempt), max(gone)
        if before is not None and begin > before:
            ns["down"] += (begin - before) * ranks
            total += (begin - before) * ranks
        total += (over - begin) * ranks
        before = max(over, before or 0)
        still = end.still if end.still is not None else min(gone)
        kept = min(account.resumed_after[index + 1 :], default=None)
        for life in attempt:
            ns[START] += life.begin - begin
            _one_life(ns, by_pid[life.pid], life.begin, end, still, over, account, account.resumed_after[index], kept)
    ns[LOG] = total - sum(ns.values())
    return Truth(total / 1e9, {name: value / 1e9 for name, value in ns.items()})


def _one_life(
    ns: dict[str, int],
    stamps: Sequence[tuple[str, int]],
    begin: int,
    end: End,
    still: int,
    over: int,
    account: Account,
    resumed_after: int,
    kept: int | None,
) -> None:
    """`kept`: the last step that later attempts did not take back; None: there are no later ones."""
    at, open_since, in_step, started = begin, "start", False, False
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
            number = int(name.split()[1])
            step = resumed_after + number
            lost = kept is not None and step > kept
            ns[account.of_step.get(number, end.lost(step) if lost else STEPS)] += t - at
        elif kind == "load":
            ns["ckpt_load"] += t - at
        else:
            ns[{"save": "ckpt_save", "eval": "eval"}[kind]] += t - at
        at, in_step = t, False
    if end.cause is None or end.in_order:  # what follows its last work is the end
        ns["shutdown"] += over - at
        return
    died_in = open_since if in_step or not started else ""
    bucket = {"save": "ckpt_save", "load": "ckpt_load", "start": START}.get(died_in)
    ns[bucket or f"lost_work/{end.cause}"] += max(0, still - at)
    ns["detect"] += over - max(at, still)


def differences(true: Mapping[str, float], ours: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """By bucket, truth and ours; of buckets that either has."""
    return {name: (true.get(name, 0.0), ours.get(name, 0.0)) for name in sorted({*true, *ours})}
