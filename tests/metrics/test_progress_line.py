"""The console line: plain where it is no terminal, one redrawn line where it is."""

import re
from io import StringIO

import pytest
from rich.console import Console

from train.metrics.console import ProgressLine


def _row(step: int, **more: float) -> dict[str, float]:
    row = {"train/step": step, "train/loss": 3.21, "perf/tokens_per_sec": 12_345.0, "perf/step_time_s": 2.0}
    return row | more


def test_plain_lines_where_there_is_no_terminal() -> None:
    stream = StringIO()
    with ProgressLine(100, Console(file=stream, force_terminal=False, width=20)) as line:
        line.update(_row(10))
        line.note("saved [step 10]")
        line.update(_row(20, **{"perf/mfu": 0.312, "eval/loss": 3.5}))
    assert stream.getvalue().splitlines() == [
        "step 10/100  loss 3.2100  3:00 left  12.3k tokens/s",
        "saved [step 10]",
        "step 20/100  loss 3.2100  2:40 left  12.3k tokens/s  MFU 31.2%  eval 3.5000",
    ]


def test_a_pipe_is_no_terminal_whatever_force_color_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with ProgressLine(4) as line:
        line.update(_row(4))
    assert capsys.readouterr().out == "step 4/4  loss 3.2100  0:00 left  12.3k tokens/s\n"


def test_time_left_is_from_the_median_of_recent_steps() -> None:
    stream = StringIO()
    line = ProgressLine(2100, Console(file=stream, force_terminal=False))
    line.update({"train/step": 1, "perf/step_time_s": 500.0})  # compilation
    for step in range(2, 101):
        line.update({"train/step": step, "perf/step_time_s": 2.0})
    assert stream.getvalue().splitlines()[-1] == "step 100/2100  1:06:40 left"


def test_a_row_without_a_value_keeps_the_last_one() -> None:
    stream = StringIO()
    line = ProgressLine(100, Console(file=stream, force_terminal=False))
    line.update(_row(10))
    line.update({"train/step": 10, "eval/loss": 3.5})
    assert "loss 3.2100" in stream.getvalue().splitlines()[-1]


def test_a_terminal_gets_one_line_that_fits() -> None:
    stream = StringIO()
    console = Console(file=stream, force_terminal=True, width=60, _environ={"TERM": "xterm"})
    with ProgressLine(100, console) as line:
        for step in (10, 20, 30):
            line.update(_row(step, **{"perf/mfu": 0.312, "eval/loss": 3.5}))
            line.note(f"note {step} " + "x" * 100)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    lines = [text for text in re.split(r"[\r\n]+", plain) if text.startswith("step ")]
    assert "\x1b[2K" in stream.getvalue()  # redrawn in place
    assert all(len(text) <= 60 for text in lines)
    # MFU no longer fits, and is left out whole
    assert lines[-1].rstrip() == "step 30/100  loss 3.2100  2:20 left  12.3k tokens/s"
    assert "note 10 " + "x" * 100 in plain


@pytest.mark.parametrize("width", [1, 5, 12, 30])
def test_the_narrowest_terminal_gets_no_second_line(width: int) -> None:
    stream = StringIO()
    with ProgressLine(100, Console(file=stream, force_terminal=True, width=width, _environ={"TERM": "xterm"})) as line:
        line.update(_row(10))
        line.update(_row(11))
    assert "\x1b[1A" not in stream.getvalue()  # never moved up over a line that wrapped
