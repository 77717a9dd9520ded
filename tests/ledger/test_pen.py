"""The pen of a ledger."""

import json
import os
from pathlib import Path

import pytest

from train.ledger.ledger import Ledger


def test_what_comes_after_its_end_is_written_nowhere(tmp_path: Path) -> None:
    """A thread may be late with its last words; the descriptor's number may be another file's by then."""
    pen = Ledger(tmp_path / "rank.jsonl")
    pen.write("exit", cause="finished")
    pen.close()
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    try:
        with pytest.raises(OSError, match="closed"):
            pen.write("exit", sync=True, cause="preempted")
        pen.close()
        os.fsync(other)
    finally:
        os.close(other)
    assert (tmp_path / "other").read_bytes() == b""
    (line,) = (tmp_path / "rank.jsonl").read_text().splitlines()
    assert json.loads(line)["cause"] == "finished"
