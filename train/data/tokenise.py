"""Tokenise a plan's documents into a TokenFolder; stopped at any moment, it goes on where it was."""

import os
from pathlib import Path

from train.data.feed import BATCH, Feed
from train.data.file_lock import FileLock
from train.data.source import DataError
from train.data.text_plan import TextPlan
from train.data.token_folder import TOKENS_FILE, TokenFolder, describe
from train.data.token_writer import (
    HELDOUT,
    PROGRESS_FILE,
    SHARD_TOKENS,
    SPLITS,
    TRAIN,
    Progress,
    TokenWriter,
    check_settings,
    id_dtype,
)
from train.data.tokenise_progress import TokeniseProgress

LOCK_FILE = "lock"
COMMIT_TOKENS = 2**23
"""Tokens between two records of progress: what a kill can cost."""


def tokenise(
    folder: Path,
    plan: TextPlan,
    progress: TokeniseProgress,
    key: str,
    *,
    shard_tokens: int = SHARD_TOKENS,
    batch: int = BATCH,
    commit_tokens: int = COMMIT_TOKENS,
) -> TokenFolder:
    """The folder of `plan`'s tokens: made, finished, or opened if it is whole already.

    Processes that ask for the same folder take turns. Its bytes depend on the plan alone, not on interruptions.
    `key` is what the user names the folder by, for messages.

    Raises:
        DataError: if documents cannot be read, a split gets no text, the folder cannot be written, or holds others.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(folder, key)
        with FileLock(folder / LOCK_FILE) as lock:
            lock.acquire(f"another process that tokenises into {folder}")
            if not (folder / TOKENS_FILE).exists():
                _make(folder, plan, progress, key, shard_tokens, batch, commit_tokens)
            # What only a kill leaves.
            for leftover in (folder / PROGRESS_FILE, *folder.glob("*.json.*.tmp")):
                leftover.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{key}: {folder} cannot be written to ({error.strerror}): name another folder") from error
    finished = TokenFolder.open(folder)
    check_settings(folder, finished.settings, plan.settings)
    return finished


def _refuse_foreign(folder: Path, key: str) -> None:
    """Refuse a folder that others keep their files in: ours would be among them, and be cut and deleted by name."""
    names = set(os.listdir(folder))
    strange = sorted(name for name in names if name != LOCK_FILE and not name.endswith(".tmp"))
    if strange and not names & {TOKENS_FILE, PROGRESS_FILE}:
        raise DataError(f"{key}: {folder} holds other files ({strange[0]}): name a folder that is new or empty")


def _make(
    folder: Path,
    plan: TextPlan,
    shown: TokeniseProgress,
    key: str,
    shard_tokens: int,
    batch: int,
    commit_tokens: int,
) -> None:
    recorded = Progress.read(folder)
    # A folder that has no tokens yet binds to nothing: what was typed may just have been put right.
    if recorded is None or not any(recorded.tokens.values()):
        recorded = Progress(plan.settings, shard_tokens)
        recorded.write(folder)
    check_settings(folder, recorded.settings, plan.settings)
    writer = TokenWriter(folder, id_dtype(plan.tokenizer.vocab_size), recorded)
    feeds: list[Feed] = []
    try:
        feeds += plan.start(writer, batch)
        with shown.showing(folder, feeds, sum(writer.tokens.values())):
            _drain(feeds, writer, shown, commit_tokens)
        for split, name in ((TRAIN, "training"), (HELDOUT, "held-out")):
            if not recorded.tokens[split]:
                writer.discard()
                raise DataError(
                    f"the text is too little to split: no document is {name}; give it more text, or smaller documents "
                    "(data.document=paragraph or line), or set data.heldout_fraction nearer to 0.5"
                )
        documents = sum(feed.state.documents for feed in feeds)
        describe(
            folder,
            recorded,
            plan.tokenizer.vocab_size,
            plan.tokenizer.separator,
            plan.tokenizer.identity,
            documents,
        )
    finally:
        for feed in feeds:
            feed.close()
        writer.close()


def _drain(feeds: list[Feed], writer: TokenWriter, shown: TokeniseProgress, commit_tokens: int) -> None:
    """Every feed to its end, recorded now and then, and at the end."""
    for feed in feeds:
        while not feed.state.done:
            feed.step()
            if sum(writer.tokens.values()) - sum(writer.progress.tokens.values()) >= commit_tokens:
                writer.commit()
            shown.update(feeds, sum(writer.tokens.values()))
    writer.progress.done = dict.fromkeys(SPLITS, True)
    writer.commit()
