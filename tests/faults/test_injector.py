"""What the injector does to one process: each fault once, where and when it says, and stamped."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness.torchrun import REPOSITORY

from parallel.clock.phase_clock import Clock, Phase
from train.faults.config import Fault, FaultConfig, Place
from train.faults.injector import InjectedFault, Injector
from train.ledger.events import now_ns


def stamps(folder: Path) -> list[dict]:
    path = folder / "faults" / "attempt-0002-rank-00001.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def injector(folder: Path, *faults: FaultConfig) -> Injector:
    """Of rank 1 in attempt 2."""
    return Injector(faults, 1, 2, folder)


def test_without_faults_nothing_listens(tmp_path: Path) -> None:
    clock = Clock()
    of_others = [FaultConfig(Fault.crash, rank=0, step=3, attempt=0), FaultConfig(Fault.crash, rank=1, step=3)]
    injector(tmp_path).listen(clock)
    injector(tmp_path, *of_others).listen(clock)  # of another rank, of another attempt
    assert clock.listeners == []
    assert injector(tmp_path).loss_factor() == 1
    assert not (tmp_path / "faults").exists()


PHASES = {
    Place.data: Phase.data_wait,
    Place.forward: Phase.compute_fwd,
    Place.backward: Phase.compute_bwd,
    Place.optimizer: Phase.compute_opt,
    Place.save: Phase.ckpt_save,
}


@pytest.mark.parametrize("place", PHASES)
@pytest.mark.parametrize("attempt", [2, 0])
def test_a_phase_is_a_place(place: Place, attempt: int, tmp_path: Path) -> None:
    clock = Clock()
    faults = injector(tmp_path, FaultConfig(Fault.crash, 1, 3, place, attempt=attempt))
    faults.listen(clock)
    reached = []
    for step in (2, 3, 3, 4):  # 3 again, as after a rollback
        faults.step = step
        for phase in (*PHASES.values(), Phase.log, Phase.eval):
            before = now_ns()
            try:
                clock.enter(phase)
            except InjectedFault as error:
                reached.append((step, phase, str(error), before))
    ((step, phase, said, before),) = reached
    assert (step, phase, said) == (3, PHASES[place], f"faults.inject: rank 1 crashes at {place.value}, step 3")
    (stamp,) = stamps(tmp_path)
    assert before <= stamp.pop("begin") <= now_ns()
    assert stamp == {"what": "crash", "step": 3, "place": place.value}


@pytest.mark.parametrize("place", [Place.start, Place.load, Place.write, Place.rename])
def test_places_that_no_phase_tells_of(place: Place, tmp_path: Path) -> None:
    stepless = place in (Place.start, Place.load)
    faults = injector(tmp_path, FaultConfig(Fault.crash, 1, 0 if stepless else 3, place, attempt=2))
    faults.step = 5  # written behind later steps
    for other in Place:
        if other is not place:
            faults.reach(other, 3)
    if not stepless:
        faults.reach(place, 5)
    with pytest.raises(InjectedFault):
        faults.reach(place, 0 if stepless else 3)
    faults.reach(place, 0 if stepless else 3)


def test_a_write_fails_as_on_a_full_disk(tmp_path: Path) -> None:
    faults = injector(tmp_path, FaultConfig(Fault.fail, 1, 3, attempt=2))
    with pytest.raises(OSError, match="No space left on device") as failed:
        faults.reach(Place.write, 3)
    assert failed.value.errno == 28
    faults.reach(Place.write, 3)


def test_slow_is_stamped_with_both_ends(tmp_path: Path) -> None:
    faults = injector(tmp_path, FaultConfig(Fault.slow, 1, 3, Place.data, seconds=0.05, attempt=2))
    before = now_ns()
    faults.reach(Place.data, 3)
    after = now_ns()
    (stamp,) = stamps(tmp_path)
    assert before <= stamp["begin"] < stamp["end"] <= after
    assert stamp["end"] - stamp["begin"] >= 0.05e9


def test_a_loss_is_spoilt_as_often_as_it_is_listed(tmp_path: Path) -> None:
    again = [FaultConfig(Fault.non_finite, 1, 3, attempt=2)] * 2
    faults = injector(tmp_path, *again, FaultConfig(Fault.non_finite, 1, 4, attempt=2))
    factors = []
    for faults.step in (2, 3, 4, 3, 3):
        factors.append(faults.loss_factor())
    assert [factor == 1 for factor in factors] == [True, False, False, False, True]
    assert [(stamp["what"], stamp["step"]) for stamp in stamps(tmp_path)] == [
        ("non_finite", step) for step in (3, 4, 3)
    ]


def test_one_bit_of_its_own_file(tmp_path: Path) -> None:
    checkpoint = tmp_path / "step-00000003"
    checkpoint.mkdir()
    written = {f"__{rank}_{n}.distcp": bytes(range(100 + 50 * n)) for rank in (0, 1, 11) for n in (0, 1)}
    for name, content in written.items():
        (checkpoint / name).write_bytes(content)
    faults = injector(tmp_path, FaultConfig(Fault.corrupt, 1, 3, attempt=2))
    faults.committed(checkpoint, 2)
    assert all((checkpoint / name).read_bytes() == content for name, content in written.items())
    faults.committed(checkpoint, 3)
    faults.committed(checkpoint, 3)
    changed = {n: c for n, c in written.items() if (checkpoint / n).read_bytes() != c}
    ((name, before),) = changed.items()
    assert name == "__1_1.distcp"  # the largest
    after = (checkpoint / name).read_bytes()
    assert sum((a ^ b).bit_count() for a, b in zip(after, before, strict=True)) == 1
    (stamp,) = stamps(tmp_path)
    assert (stamp["what"], stamp["step"]) == ("corrupt", 3)


KILLED = """
import os, signal, sys
from pathlib import Path
from train.faults.config import Fault, FaultConfig, Place
from train.faults.injector import Injector
for what in ("sigkill", "sigterm", "sigstop"):
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
        Injector([FaultConfig(Fault(what), 1, 3, attempt=2)], 1, 2, Path(sys.argv[1], what)).reach(Place.forward, 3)
        os._exit(0)
    _, status = os.waitpid(child, os.WUNTRACED)
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else "", os.WIFEXITED(status) and os.WEXITSTATUS(status),
          os.WIFSTOPPED(status) and os.WSTOPSIG(status), sep=",")
    if os.WIFSTOPPED(status):
        os.kill(child, signal.SIGCONT)
        print(os.WEXITSTATUS(os.waitpid(child, 0)[1]))
"""


def test_signals_reach_the_process_itself(tmp_path: Path) -> None:
    """SIGKILL ends it, SIGTERM can be heard, SIGSTOP stops it until it is continued; all stamped before."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == [
        f"{int(signal.SIGKILL)},False,False",
        ",7,False",
        f",False,{int(signal.SIGSTOP)}",
        "0",
    ]
    for what in ("sigkill", "sigterm", "sigstop"):
        (stamp,) = stamps(tmp_path / what)
        assert stamp["what"] == what
        assert "end" not in stamp
