"""A SLURM job whose time is over: its ranks are told, and it queues again, if that leads anywhere."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness.slurm import stand_ins

from launch.ranks import code_environment
from launch.requeue import main, why_not
from launch.submit import SCRIPT

RANKS = """
trap 'echo told; sleep 0.5; exit ${CODE:-1}' TERM
echo "submitted $SWITCHYARD_SUBMITTED, launched $SWITCHYARD_LAUNCHED, grace $TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
while :; do sleep 0.1; done
"""


class Queued:
    """A job of one node, whose torchrun is a shell."""

    def __init__(self, folder: Path) -> None:
        slurm = stand_ins(folder / "slurm")
        python = folder / "python"  # what the script calls so: torchrun, and the question whether to queue again
        python.write_text(f'#!/bin/bash\n[[ $2 == launch.requeue ]] && exec {sys.executable} "$@"\n{RANKS}')
        python.chmod(0o755)
        self.folder, self._flags, self._log = folder, slurm / "flags", folder / "log"
        self._environment = os.environ | {"PATH": f"{slurm}:{os.environ['PATH']}", "SWITCHYARD_PYTHON": str(python)}

    def cut_short(self, **variables: str) -> tuple[int, str]:
        """It begins, and gets SIGTERM as SLURM sends it to the script alone; its exit code, and what it said."""
        command = ["sbatch", str(SCRIPT), "model=tiny"]
        with self._log.open("w") as log:
            environment = self._environment | code_environment() | variables
            script = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        while "submitted" not in self._log.read_text() and "TOLD_EARLY" not in variables:
            time.sleep(0.05)
            assert script.poll() is None, self._log.read_text()
        if "TOLD_EARLY" not in variables:
            script.send_signal(signal.SIGTERM)
        return script.wait(60), self._log.read_text()

    @property
    def asked(self) -> list[str]:
        """Of scancel and scontrol."""
        return [line for line in self._flags.read_text().splitlines() if not line.startswith("--n")]


@pytest.fixture
def queued(tmp_path: Path) -> Queued:
    return Queued(tmp_path)


def test_a_job_whose_time_is_over_tells_its_ranks_and_queues_again(queued: Queued) -> None:
    code, said = queued.cut_short()
    assert code == 1  # torchrun's, which was told to end
    assert "told" in said.splitlines()
    assert said.endswith("job 7: cut short, queued again\n")
    assert [line for line in queued.asked if "kill" not in line and "cpus" not in line] == [
        "--signal=TERM 7",
        "requeue 7",
    ]
    seconds = int(time.mktime((2026, 11, 26, 10, 0, 0, 0, 0, -1)))
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert f"submitted {seconds}000000000, launched {boot} " in said
    launched = int(said.partition(f"launched {boot} ")[2].partition(",")[0])
    assert 0 < time.clock_gettime_ns(time.CLOCK_BOOTTIME) - launched < 60e9


@pytest.mark.soak
def test_a_scancel_that_fails_is_called_again(queued: Queued) -> None:
    _, said = queued.cut_short(BUSY_ONCE="yes")
    assert "told" in said.splitlines()
    assert [line for line in queued.asked if "TERM" in line] == ["--signal=TERM 7"] * 2
    assert said.endswith("job 7: cut short, queued again\n")


@pytest.mark.soak
def test_one_that_is_told_before_it_began_queues_again_at_once(queued: Queued) -> None:
    code, said = queued.cut_short(TOLD_EARLY="yes")
    assert code != 0
    assert said.endswith("job 7: cut short, queued again\n")


@pytest.mark.parametrize("variables", [{"CODE": "0"}, {"JOB_STATE": "CANCELLED"}])
def test_one_that_finished_or_was_cancelled_does_not(variables: dict[str, str], queued: Queued) -> None:
    code, said = queued.cut_short(**variables)
    assert code == int(variables.get("CODE", 1))
    assert "queued again" not in said
    assert "requeue 7" not in queued.asked


def test_one_that_was_stopped_does_not(queued: Queued) -> None:
    run = queued.folder / "runs" / "slurm-7"
    run.mkdir(parents=True)
    (run / "STOP").touch()
    _, said = queued.cut_short()
    assert f"switchyard: not queued again: {run / 'STOP'} asks it to stop" in said
    assert "requeue 7" not in queued.asked


def attempt(run: Path, number: int, *events: str, ends: Sequence[str] = ()) -> None:
    """Of as many ranks as have an end, "" is none; the events are the first one's."""
    folder = run / "ledger" / f"attempt-{number:04d}"
    folder.mkdir(parents=True)
    for rank, end in enumerate(ends or [""]):
        written = [{"ev": event, "t": number} for event in ("start", *(events if rank == 0 else ()))]
        written += [{"ev": "exit", "t": number, "cause": end, "code": 1}] if end else []
        lines = [json.dumps(event) for event in written]
        (folder / f"rank-{rank:05d}.jsonl").write_text("\n".join(lines) + '\n{"ev": "torn')


@pytest.mark.parametrize("ends", [["preempted", "preempted"], ["preempted", ""], ["", ""], ["lost_peers", ""]])
def test_one_that_was_cut_short_queues_again(ends: list[str], tmp_path: Path) -> None:
    attempt(tmp_path, 1, ends=["failed", "failed"])
    attempt(tmp_path, 2, ends=ends)
    assert why_not(tmp_path) is None


@pytest.mark.parametrize(
    ("ends", "why"),
    [
        (["lost_peers", "failed"], "rank 1 ended by itself (failed)"),
        (["diverged", "diverged"], "rank 0 ended by itself (diverged)"),
        (["preempted", "refused"], "rank 1 ended by itself (refused)"),
    ],
)
def test_one_that_ended_by_itself_after_the_warning_does_not(ends: list[str], why: str, tmp_path: Path) -> None:
    attempt(tmp_path, 1, ends=ends)
    assert why_not(tmp_path) == f"{why}, and would do so again"


def test_three_attempts_in_a_row_that_saved_nothing_are_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert why_not(tmp_path) is None
    attempt(tmp_path, 1, "committed")
    for number in (2, 3):
        attempt(tmp_path, number, "saving")
        assert why_not(tmp_path) is None
    attempt(tmp_path, 4)
    assert main(["model=tiny", f"run.dir={tmp_path}"]) == 1
    assert capsys.readouterr().err == (
        "switchyard: not queued again: its last 3 attempts saved nothing: set checkpoint.every to fewer steps, "
        "or --time to more\n"
    )
    attempt(tmp_path, 5, "committed")
    assert main(["model=tiny", f"run.dir={tmp_path}"]) == 0
