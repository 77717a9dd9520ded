"""The thread that fills a spool, in whichever process of the machine holds its lock."""

import atexit
from pathlib import Path
from threading import Event, Lock, Thread

from train.data.feed import BATCH, Feed
from train.data.file_lock import POLL_S, FileLock
from train.data.source import DataError
from train.data.spool import read_wanted
from train.data.text_plan import TextPlan
from train.data.token_writer import (
    SHARD_TOKENS,
    SPLITS,
    TRAIN,
    Progress,
    TokenWriter,
    check_settings,
    id_dtype,
)

AHEAD = 2**24
"""Training tokens that are made before anyone has asked for them."""
CLOSING_S = 15.0
"""How long the end of a process waits for the thread, which may be waiting for a network."""


class SpoolWriter:
    """Makes the tokens of `plan` in `folder`, if no other process does, and as many as are wanted."""

    def __init__(
        self,
        folder: Path,
        plan: TextPlan,
        *,
        ahead: int = AHEAD,
        shard_tokens: int = SHARD_TOKENS,
        batch: int = BATCH,
    ) -> None:
        """Make the folder; write nothing yet. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._plan = folder, plan
        self._ahead, self._shard_tokens, self._batch = ahead, shard_tokens, batch
        self._lock = FileLock(folder / "lock")
        self._starting = Lock()  # the loader's thread and the loop's may both come to wait
        self._stop = Event()
        self._thread: Thread | None = None
        self._failure: DataError | None = None
        # A thread that reads a dataset while Python ends may crash it.
        atexit.register(self.close)

    def start(self) -> None:
        """Be the writer, unless another process is, or all is written. Raises DataError if this one has failed."""
        with self._starting:
            if self._failure:
                raise self._failure
            if self._thread is None and not self._stop.is_set() and self._lock.try_acquire():
                self._thread = Thread(target=self._run, name="spool", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop, and let another process go on. May be called again."""
        atexit.unregister(self.close)
        self._stop.set()
        if self._thread:
            self._thread.join(CLOSING_S)
        if not (
            self._thread and self._thread.is_alive()
        ):  # else it may write still, and the lock goes with the process
            self._lock.close()

    def _run(self) -> None:
        progress = Progress(self._plan.settings, self._shard_tokens)
        try:
            progress = Progress.read(self._folder) or progress
            check_settings(self._folder, progress.settings, self._plan.settings)
            progress.failure = None
            progress.write(self._folder)
            if not all(progress.done.values()):
                self._write(progress)
        except Exception as error:  # whatever it is, the readers of every process are to hear of it and not wait
            self._fail(progress, error)

    def _write(self, progress: Progress) -> None:
        writer = TokenWriter(self._folder, id_dtype(self._plan.tokenizer.vocab_size), progress)
        feeds: list[Feed] = []
        try:
            feeds += self._plan.start(writer, self._batch)
            while not self._stop.is_set() and not all(progress.done.values()):
                feed = self._next(feeds, progress)
                if feed is None:
                    self._stop.wait(POLL_S)
                    continue
                feed.step()
                if feed.state.done:
                    progress.done |= dict.fromkeys(_splits(feed), True)
                writer.commit()
        finally:
            for feed in feeds:
                feed.close()
            writer.close()

    def _next(self, feeds: list[Feed], progress: Progress) -> Feed | None:
        """The feed to go on with: of what somebody waits for first, then of training text to be ahead with."""
        wanted = read_wanted(self._folder)
        # Held-out text is not made ahead: where one document in twenty is held out, that would take twenty times more.
        for wish in (wanted, wanted | {TRAIN: wanted[TRAIN] + self._ahead}):
            for feed in feeds:
                if any(progress.tokens[split] < wish[split] and not progress.done[split] for split in _splits(feed)):
                    return feed
        return None

    def _fail(self, progress: Progress, error: Exception) -> None:
        said = error if isinstance(error, DataError) else DataError(f"{self._folder}: {type(error).__name__}: {error}")
        if isinstance(error, OSError):
            said = DataError(f"{self._folder} cannot be written to ({error.strerror}): set data.cache_dir elsewhere")
        self._failure = said
        progress.failure = str(said)
        try:
            progress.write(self._folder)
        except OSError:  # a full disk, say: another process will find out for itself
            self._lock.release()


def _splits(feed: Feed) -> tuple[str, ...]:
    """The splits that a feed fills: the one that it is named after, or both."""
    return (feed.name,) if feed.name in SPLITS else SPLITS
