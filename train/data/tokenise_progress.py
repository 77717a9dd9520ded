"""What a person sees of tokenising: a bar in a terminal, and two lines anywhere else."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from train.data.feed import Feed


class TokeniseProgress:
    """Bytes read of how many, tokens, tokens/s and the time left, on `console` (default: standard output)."""

    def __init__(self, console: Console | None = None) -> None:
        # rich takes FORCE_COLOR for a terminal, and CI sets that over a pipe: ask the stream itself.
        console = console or Console()
        self._console = console if console.file.isatty() else Console(file=console.file, force_terminal=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started = 0.0
        self._before = self._tokens = 0

    @contextmanager
    def showing(self, folder: Path, feeds: Sequence[Feed], tokens: int) -> Iterator[None]:
        """Show the way of `feeds` into `folder`, where there are `tokens` already, until the block is left."""
        self._started, self._before, self._tokens = time.monotonic(), tokens, tokens
        done, total = _bytes_read(feeds), _bytes_total(feeds)
        goes_on = any(feed.state.documents or feed.state.piece for feed in feeds)
        size = f"{total / 1e6:,.1f} MB" if total else "a stream of documents"
        self._say(f"tokenising {size} into {folder}" + (" (going on with what is there)" if goes_on else ""))
        if self._console.is_terminal:
            columns = (BarColumn(), DownloadColumn(), TextColumn("{task.fields[tokens]}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("", total=total, completed=done, tokens="")
            self._bar.start()
        try:
            yield
        finally:
            if self._bar:
                self._bar.stop()
                self._bar = None
        documents = sum(feed.state.documents for feed in feeds)
        self._say(f"{documents:,} documents, {self._tokens:,} tokens, {self._rate()}")

    def update(self, feeds: Sequence[Feed], tokens: int) -> None:
        """Show where `feeds` are, with `tokens` in all."""
        self._tokens = tokens
        if self._bar and self._task is not None:
            shown = f"{tokens:,} tokens, {self._rate()}"
            self._bar.update(self._task, completed=_bytes_read(feeds), tokens=shown)

    def _rate(self) -> str:
        seconds = time.monotonic() - self._started
        return f"{(self._tokens - self._before) / max(seconds, 1e-3):,.0f} tokens/s"

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _bytes_total(feeds: Sequence[Feed]) -> int | None:
    """Bytes of all files; None if they are not known."""
    sizes = [feed.documents.part_bytes for feed in feeds]
    return None if None in sizes else sum(sum(size) for size in sizes if size)


def _bytes_read(feeds: Sequence[Feed]) -> int:
    """About how many bytes of files were read: text may take more or less room there, so files set the bounds."""
    read = 0
    for feed in feeds:
        sizes, state = feed.documents.part_bytes, feed.state
        if sizes is None:
            read += state.bytes
        else:
            low, high = sum(sizes[: state.part]), sum(sizes[: state.part + 1])
            read += high if state.done else min(max(low, state.bytes), high)
    return read
