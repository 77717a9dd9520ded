"""Tiles as a rank writes them."""

from pathlib import Path

from parallel.clock.phase_clock import Phase, Window
from train.ledger.events import attempt_folder, now_ns
from train.ledger.ledger import Ledger
from train.ledger.read import read_ledger
from train.ledger.records import StepsTile
from train.ledger.tiles import Tiles
from train.metrics.breakdown import IN_STEPS


def test_a_rollback_begins_a_window_and_forgets_what_was_logged_before(tmp_path: Path) -> None:
    folder = attempt_folder(tmp_path, 1)
    folder.mkdir(parents=True)
    tiles = Tiles(Ledger(folder / "rank-00000.jsonl"), now_ns() - 5_000_000_000)
    with tiles.apart(Phase.eval):  # before it: 5 s of log
        pass
    tiles.end("ckpt_load")
    tiles.start_at(2)
    window = Window(steps=1, step_s=[1.0])
    window.phase_s[Phase.log] = 3.0
    tiles.end_steps(3, now_ns(), window, dict.fromkeys((*IN_STEPS, "profile"), 0.0))
    (rank,) = read_ledger(tmp_path).attempts[0].ranks.values()
    (steps,) = (event for event in rank.own if isinstance(event, StepsTile))
    assert steps.buckets == {"log": 3_000_000_000}
