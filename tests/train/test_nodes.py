"""Jobs of two nodes, on loopback: what one process gives, what stops them, and that none waits for a node that is gone.

Slow ones, with a launch after another, are left to `make soak`.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.run_record import RunRecord, reproducible
from harness.torchrun import CompletedRun, TorchrunLaunch, start_nodes

JOB = ("model=tiny", "train.device=cpu", "train.log_every=1", "precision=fp64", "logging=off")
ENDS_WITHIN_S = 300.0
SHORT = ("train.steps=2", "checkpoint=off", "train.eval_sequences=8")


@contextmanager
def nodes(n_nodes: int, nproc: int, *words: str, **options: Any) -> Iterator[list[TorchrunLaunch]]:
    """A job's agents, whose processes are gone in the end."""
    with ExitStack() as stack:
        yield [stack.enter_context(launch) for launch in start_nodes(n_nodes, nproc, *words, **options)]


def ended(n_nodes: int, nproc: int, *words: str, **options: Any) -> list[CompletedRun]:
    """The same, when they have ended by themselves, before a process group's ten minutes were over."""
    with nodes(n_nodes, nproc, *words, **options) as launches:
        return [launch.wait(ENDS_WITHIN_S) for launch in launches]


def lines(done: CompletedRun) -> list[str]:
    """What our ranks, not torchrun, said to standard error."""
    return [line for line in done.stderr.splitlines() if line.startswith("switchyard: ")]


def test_two_nodes_train_as_one_process(trained: Callable[[str], RunRecord], tmp_path: Path) -> None:
    """Stages on a node each, experts divided inside."""
    words = ("strategy=pp_ep", "train.steps=20", "train.eval_sequences=8", "train.eval_every=10", "checkpoint=off")
    where = f"run.dir={tmp_path / 'run'}"
    for done in ended(2, 2, *JOB, *words, "optim.warmup_steps=5", where):
        assert done.returncode == 0, done.stderr
        assert lines(done) == []
    one, two = trained("single fp64"), RunRecord(tmp_path / "run")
    for key in ("train/loss", "train/grad_norm", "eval/loss"):
        assert two.column(key) == pytest.approx(one.column(key), rel=0, abs=1e-12), key
    environment = two.config["environment"]
    assert (environment["world_size"], environment["ranks_per_node"]) == (4, 2)
    assert {path.name for path in two.folder.iterdir()} == {"config.yaml", "ledger", "metrics.jsonl", "summary.json"}


@pytest.mark.soak  # said before any process: tests/conf/test_refusals.py
def test_tensor_parallelism_across_nodes_is_refused(tmp_path: Path) -> None:
    first, second = ended(2, 1, *JOB, *SHORT, "strategy=tp", f"run.dir={tmp_path / 'run'}")
    assert first.returncode == second.returncode == 1  # torchrun's own
    (line,) = lines(first)
    assert "strategy.tp=2 does not fit into a node, which has 1 rank" in line
    assert line in second.stderr.partition("train FAILED")[2]  # torchrun's summary there
    assert list(tmp_path.iterdir()) == []


def own_file_system(folder: Path) -> list[str]:
    """What starts a program that has another, empty file system at `folder`; no words where that is not allowed."""
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = f'mount -t tmpfs none "{folder}" && '
    try:
        tried = subprocess.run([*command, f"{mount} true"], capture_output=True)
    except FileNotFoundError:
        return []
    return [] if tried.returncode else [*command, f'{mount} exec "$@"', "sh"]


@pytest.mark.soak  # ranks that do not see it: test_shared_folder.py
def test_a_run_folder_that_a_node_does_not_see_stops_all(tmp_path: Path) -> None:
    alone = own_file_system(tmp_path)
    if not alone:
        pytest.skip("needs a mount namespace; tests/train/test_shared_folder.py goes without")
    both = ended(2, 2, *JOB, *SHORT, "strategy=fsdp", f"run.dir={tmp_path / 'a' / 'run'}", before={1: alone})
    first = both[0]
    assert [done.returncode for done in both] == [1, 1]  # torchrun's own
    (line,) = lines(first)
    assert f"cannot see what rank 0 wrote to {tmp_path / 'a' / 'run'}" in line
    assert line.endswith("set run.dir (or run.root) to a folder on a file system that every node sees")
    for done in both:
        assert "exitcode  : 2" in done.stderr
        ours, _, summary = done.stderr.partition("train FAILED")
        assert line in summary
        assert "Traceback" not in summary
        assert "switchyard: rank" not in ours
    assert list(tmp_path.iterdir()) == []


def test_what_one_node_refuses_the_other_does_not_wait_for(tmp_path: Path) -> None:
    """A folder of options that is on one node alone. The other, which took the job, has told where experts' rows go."""
    mine = tmp_path / "mine"
    (mine / "model").mkdir(parents=True)
    (mine / "model" / "mine.yaml").write_text("dim: 64")
    elsewhere = ["sh", "-c", 'cd / && exec "$@"', "sh"]
    words = (*JOB, *SHORT, "strategy=ep", f"run.dir={tmp_path / 'run'}", "--config-dir", "mine")
    first, second = ended(2, 1, *words, cwd=tmp_path, before={1: elsewhere})
    note, line = lines(first)
    assert note == (
        "switchyard: strategy.ep=2 does not fit into a node, which has 1 rank: rows to experts cross the network in "
        "every layer"
    )
    assert ": --config-dir mine: name a folder that holds" in line
    assert line.startswith("switchyard: on ")
    assert lines(second) == []
    assert "switchyard: --config-dir mine: name a folder" in second.stderr.partition("train FAILED")[2]
    for done in (first, second):
        assert done.returncode == 1
        assert "exitcode  : 2" in done.stderr
        assert "Traceback" not in done.stderr.partition("train FAILED")[2]
        assert "switchyard: rank" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.soak
@pytest.mark.parametrize("gone", [0, 1])
def test_a_node_that_went_away_ends_the_other_and_both_go_on(gone: int, tmp_path: Path) -> None:
    words = (*JOB, "strategy=hsdp_ep", "train.steps=120", "train.eval_sequences=0", "checkpoint.every=20")
    whole = RunRecord(tmp_path / "whole")
    for done in ended(2, 2, *words, f"run.dir={whole.folder}"):
        assert done.returncode == 0, done.stderr
    record = RunRecord(tmp_path / "run")
    with nodes(2, 2, *words, f"run.dir={record.folder}") as launches:
        launches[0].wait_for(lambda _: record.last_step >= 25)
        launches[gone].kill_all()
        assert not (record.folder / "summary.json").exists(), "it had ended"
        left = launches[1 - gone].wait(ENDS_WITHIN_S)
    assert left.returncode == 1
    assert "lost its peers: a rank on another node went away" in left.stderr
    for done in ended(2, 2, *words, f"run.dir={record.folder}"):
        assert done.returncode == 0, done.stderr
        assert record.saved_steps[-1] == 120
    assert [reproducible(row) for row in record.rows[-10:]] == [reproducible(row) for row in whole.rows[-10:]]
    assert len(record.rows) > 120  # those between the last checkpoint and the end of the first attempt are there twice
