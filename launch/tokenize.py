"""`switchyard tokenize to=FOLDER key=value …`: text into a folder of tokens, once, for many runs."""

from collections.abc import Sequence
from pathlib import Path

from conf.command_line import CommandLine
from conf.compose import compose
from launch.jobs.typed_path import typed_path
from models.config import ConfigError
from train.data.config import READERS, DataSource
from train.data.text_plan import plan_text
from train.data.token_folder import TOKENS_FILE
from train.data.tokenise import tokenise
from train.data.tokenise_progress import TokeniseProgress

SOURCES = (DataSource.text, DataSource.hf)
NOT_READ = ("sequence_length", "boundaries", "cache_dir")
"""What data=text and data=hf take for a run, and which has no part in making tokens."""


def tokenize(words: Sequence[str]) -> int:
    """Tokenise what the words say, with a bar in a terminal; a folder that was left unfinished is gone on with.

    Returns:
        0, also where the folder is finished already.

    Raises:
        ConfigError: for words that make no sense here, text that cannot be read, or a folder that holds other tokens.
    """
    to, rest = take_folder(words)
    line = CommandLine.parse(["data=text", *rest], program="switchyard tokenize to=FOLDER")
    composed = compose(line.overrides, line.config_dir)
    if line.print_config:
        print(composed.yaml, end="")
        return 0
    data = composed.config.data
    if data.source not in SOURCES:
        raise ConfigError(f"data={data.source.value}: there is no text in it; choose data=text or data=hf")
    _check_words(rest, data.source)
    data.check()
    plan = plan_text(data, data, composed.config.train.seed)
    whole = (to / TOKENS_FILE).exists()
    folder = tokenise(to, plan, TokeniseProgress(), "to")
    if whole:
        print(f"{to} is finished already, with these settings")
    ids = f"{folder.vocab_size:,} ids, {folder.separator} ends a document"
    print(
        f"{to}: {sum(map(len, folder.train)):,} tokens to train on, {sum(map(len, folder.heldout)):,} held out, {ids}"
    )
    print(f"train on them: switchyard train data=tokens data.path={to}")
    return 0


def take_folder(words: Sequence[str]) -> tuple[Path, list[str]]:
    """The folder of the last `to=FOLDER` among `words`, and the other words.

    Raises:
        ConfigError: if there is none.
    """
    given = [word.removeprefix("to=") for word in words if word.startswith("to=")]
    if (not given or not given[-1].strip()) and not {"--help", "-h"} & set(words):
        raise ConfigError("where to? switchyard tokenize to=FOLDER data.path=TEXT")
    folder = typed_path(f"to={given[-1]}", given[-1]) if given else Path()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"to={folder} is a file: name a folder that is new or empty")
    return folder, [word for word in words if not word.startswith("to=")]


def _check_words(words: Sequence[str], source: DataSource) -> None:
    """Refuse keys that have no part in tokenising, rather than leave them unread."""
    read = {f"data.{name}" for name, sources in READERS.items() if source in sources and name not in NOT_READ}
    # The seed draws from a dataset's shuffle buffer.
    read |= {"data", "train.seed"} if source is DataSource.hf else {"data"}
    for word in words:
        key = word.partition("=")[0]
        if key not in read:
            raise ConfigError(f"{word}: tokenize reads no {key}; leave it out (it reads {', '.join(sorted(read))})")
