"""What a person at the terminal sees of a run: one line."""

import statistics
from collections import deque
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text


class ProgressLine:
    """A line that is redrawn in a terminal, and printed anew at each update anywhere else.

    Redrawing happens in `update` only: no thread competes with the training loop. Rank 0 only. `console` is by default
    standard output; `label` stands beside the numbers; a context manager, or call `close`.
    """

    def __init__(self, total_steps: int, console: Console | None = None, label: str | None = None) -> None:
        self._total_steps, self._label = total_steps, label
        # rich takes FORCE_COLOR for a terminal, and CI sets that over a pipe: ask the stream itself.
        self._console = console or _standard_output()
        self._latest: dict[str, float] = {}
        self._step_times: deque[float] = deque(maxlen=20)
        self._live: Live | None = None
        if self._console.is_interactive:
            # Prints of other code go above the line too, if it is standard output that we draw on.
            redirect = console is None
            self._live = Live(
                console=self._console, auto_refresh=False, redirect_stdout=redirect, redirect_stderr=redirect
            )
            self._live.start()

    def update(self, row: Mapping[str, float]) -> None:
        """Show a row of metrics (`train/step` and any of the others); a value not in it stays as it was last seen."""
        self._latest.update(row)
        if "perf/step_time_s" in row:
            self._step_times.append(row["perf/step_time_s"])
        if self._live is None:
            self.note("  ".join(self._fields()))
        else:
            self._live.update(Text(self._fitted(), no_wrap=True, overflow="crop"), refresh=True)

    def note(self, text: str) -> None:
        """Print a line of text, above the live one."""
        if self._live is None:
            print(text, file=self._console.file, flush=True)
        else:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the last line standing and give the terminal back."""
        if self._live is not None:
            self._live.stop()

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fields(self) -> list[str]:
        """The line's parts, the most wanted first."""
        seen = self._latest
        step = int(seen.get("train/step", 0))
        fields = [f"step {step}/{self._total_steps}" + (f" ({self._label})" if self._label else "")]
        if "train/loss" in seen:
            fields.append(f"loss {seen['train/loss']:.4f}")
        if self._step_times:
            fields.append(f"{_clock((self._total_steps - step) * statistics.median(self._step_times))} left")
        if "perf/tokens_per_sec" in seen:
            fields.append(f"{_thousands(seen['perf/tokens_per_sec'])} tokens/s")
        if "perf/mfu" in seen:
            fields.append(f"MFU {seen['perf/mfu']:.1%}")
        if "eval/loss" in seen:
            fields.append(f"eval {seen['eval/loss']:.4f}")
        return fields

    def _fitted(self) -> str:
        """The line, less the last parts if the terminal is too narrow for them."""
        fields = self._fields()
        while len(fields) > 1 and len("  ".join(fields)) > self._console.width:
            fields.pop()
        return "  ".join(fields)


def _standard_output() -> Console:
    console = Console()
    return console if console.file.isatty() else Console(force_terminal=False)


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds as `1:02:03`."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _thousands(value: float) -> str:
    """Three digits or so and a unit: 950, 12.3k, 1.50M."""
    if value < 1000:
        return f"{value:.0f}"
    return f"{value / 1e3:.1f}k" if value < 1e6 else f"{value / 1e6:.2f}M"
