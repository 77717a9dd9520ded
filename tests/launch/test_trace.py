"""`switchyard trace`: run folders and files, printed."""

import re
import shutil
from pathlib import Path

import pytest

from launch.cli import main

DATA = Path(__file__).resolve().parents[1] / "trace" / "data"


def rows(printed: str) -> dict[str, str]:
    """First to second column, of one table; lines of a kind are told apart by what stands before them."""
    found: dict[str, str] = {}
    heading = ""
    for line in printed.splitlines():
        if cells := re.fullmatch(r"│ (.*?) +│ +(.*?) │.*│", line):
            heading = heading if cells[1].startswith("  ") else cells[1]
            found[f"{heading}:{cells[1]}" if cells[1].startswith("  ") else cells[1]] = cells[2]
    return found


def test_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(DATA / "device.json")]) == 0
    printed = rows(capsys.readouterr().out)
    assert printed["span, of 8 kernels"] == "0.271 ms"
    assert printed["exposed communication"] == "0.115 ms"
    assert printed["exposed communication:  dp"] == "0.050 ms"
    assert printed["communication:  ep"] == "0.090 ms"
    assert printed["idle, 3 gaps:  waiting for the host, 1 gaps"] == "0.020 ms"
    assert printed["run time of compute kernels:  dense_gemm"] == "0.100 ms"
    assert printed["of unknown kind: ncclDevKernel_AllGather_RING_LL"] == "0.020 ms"


def test_every_trace_of_a_run_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["step-00000002/rank-0", "step-00000010/rank-2", "step-00000010/rank-10"]
    for name in reversed(names):
        path = tmp_path / "traces" / f"{name}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DATA / "two_gloo_ranks.json.gz", path)
        path.with_name(path.name.replace(".json.gz", ".summary.json")).write_text("{}")
    assert main(["trace", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"step-\d+/rank-\d+(?=\.json)", printed.replace("\n", "")) == names
    assert "compute phases, without their waits" in printed


def test_what_has_no_trace_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(tmp_path)]) == 2
    assert f"{tmp_path} has no traces/" in capsys.readouterr().err
    assert main(["trace", str(tmp_path / "gone")]) == 2
    assert "gone does not exist: name a run folder or a trace file" in capsys.readouterr().err
