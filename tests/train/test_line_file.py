"""Lines on a disk that is full for a while; a limit on the file's size stands for that."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from train.ledger.ledger import Ledger
from train.ledger.read import read_ledger
from train.ledger.tiles import Tiles
from train.line_file import KEPT, LineFile
from train.metrics.jsonl import JsonlLog, read_jsonl


@contextmanager
def full(path: Path, room: int = 0) -> Iterator[None]:
    """`path` takes `room` bytes more: less of a write than it wants, then none."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", [0, 1, 7, 17])
def test_no_line_is_lost_and_none_eats_the_next(room: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows"
    log = JsonlLog(path)
    rows = [{"train/step": step} for step in range(6)]
    log.append(rows[0])
    with full(path, room):
        for row in rows[1:4]:
            log.append(row)
        assert len(read_jsonl(path)) == (2 if room == 17 else 1)  # all of a row but its end is that row
    for row in rows[4:]:
        log.append(row)
    log.close()
    assert read_jsonl(path) == rows
    told = capsys.readouterr().err
    assert told.startswith(f"switchyard: {path} cannot be written to (")
    assert told.endswith("its lines wait in memory until it can\n")
    assert told.count("\n") == 1


def test_a_ledger_goes_on(tmp_path: Path) -> None:
    """Nothing of a tile raises; the start alone does, if it must."""
    folder = tmp_path / "ledger" / "attempt-0001"
    folder.mkdir(parents=True)
    path = folder / "rank-00000.jsonl"
    ledger = Ledger(path)
    tiles = Tiles(ledger, 0)
    tiles.end("init_model")
    with full(path, 20):
        tiles.end("ckpt_load")
        ledger.write("saving", sync=True, step=1)
        with pytest.raises(OSError, match=r"File too large|bytes of a line"):
            ledger.write("exit", required=True, cause="finished", code=0)
    ledger.close()
    read = read_ledger(tmp_path)
    assert [type(event).__name__ for event in read.attempts[0].ranks[0].own] == ["Tile", "Tile", "Saving", "Exit"]
    assert read.dropped_lines == 1


def test_what_waits_has_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lines"
    lines = LineFile(path)
    lines.append(b"0")
    with full(path):
        for number in range(1, KEPT + 4):
            lines.append(str(number).encode())
    lines.append(b"last")
    assert [json.loads(line) for line in path.read_bytes().split()[:-1]] == [0, *range(4, KEPT + 4)]
    with full(path):
        lines.append(b"never")
        lines.close()
    lines.close()
    assert capsys.readouterr().err.splitlines()[-1] == f"switchyard: {path}: 4 lines could not be written, and are lost"
    with pytest.raises(OSError, match="closed"):
        lines.append(b"later")
