"""metrics.jsonl: strict JSON, whole lines, nothing lost to SIGKILL."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from train.metrics.jsonl import JsonlLog, read_jsonl, strict_row


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    log = JsonlLog(path)
    rows = [{"train/step": 1, "train/loss": 0.1 + 0.2}, {"train/step": 2, "train/loss": 1e-300}]
    for row in rows:
        log.append(strict_row(row))
    assert read_jsonl(path) == rows  # readable while it is still being written
    log.close()
    log.close()


def test_non_finite_numbers_are_strict_json_and_come_back_as_floats(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = JsonlLog(path)
    log.append(strict_row({"train/loss": math.nan, "a": math.inf, "b": -math.inf}))
    log.close()

    def reject(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    stored = json.loads(path.read_text(), parse_constant=reject)
    assert stored == {"train/loss": "NaN", "a": "Infinity", "b": "-Infinity"}
    (row,) = read_jsonl(path)
    assert math.isnan(row["train/loss"])
    assert (row["a"], row["b"]) == (math.inf, -math.inf)


def test_a_row_that_is_not_strict_is_refused(tmp_path: Path) -> None:
    log = JsonlLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.append({"train/loss": math.nan})
    log.close()
    assert read_jsonl(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("torn", ['{"train/step": 2, "train/lo', '{"train/step"', "{", '{"train/step": 2}'])
def test_a_torn_last_line_costs_that_line_only(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"train/step": 1}\n' + torn)
    whole = [{"train/step": 2}] if torn.endswith("}") else []
    assert read_jsonl(path) == [{"train/step": 1}, *whole]
    log = JsonlLog(path)
    log.append({"train/step": 3})
    log.close()
    assert read_jsonl(path) == [{"train/step": 1}, *whole, {"train/step": 3}]


def test_a_second_attempt_appends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        log = JsonlLog(path)
        log.append({"train/step": step})
        log.close()
    assert path.read_text() == '{"train/step": 1}\n{"train/step": 2}\n'


def test_sigkill_loses_no_row(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from train.metrics.jsonl import JsonlLog
log = JsonlLog(Path(sys.argv[1]))
for step in range(500):
    log.append({"train/step": step, "train/loss": 1.5})
print("written", flush=True)
time.sleep(60)
"""
    path = tmp_path / "metrics.jsonl"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert [row["train/step"] for row in read_jsonl(path)] == list(range(500))
