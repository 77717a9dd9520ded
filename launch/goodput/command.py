"""`switchyard goodput RUN`: what every rank-second of a run went to, from its ledger alone; going, ended or dead."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.goodput.picture import WaterfallPicture
from launch.goodput.table import print_books
from launch.picture_file import write_picture
from launch.table_console import table_console
from models.config import ConfigError
from train.ledger.fold import fold
from train.ledger.read import read_ledger
from train.metrics.label import label_of, labelled
from train.run_folder import read_config

USAGE = "switchyard goodput runs/NAME"
PICTURES = ("--svg", "--png")


@dataclass(frozen=True)
class GoodputOrder:
    """The words after `switchyard goodput`, sorted."""

    run: Path
    as_json: bool
    svg: Path | None
    png: Path | None

    @classmethod
    def parse(cls, words: Sequence[str]) -> "GoodputOrder":
        """Sort `words`.

        Raises:
            ConfigError: for a flag that does not exist, and unless one folder is given.
        """
        folders: list[str] = []
        files: dict[str, Path] = {}
        as_json = False
        rest = list(words)
        while rest:
            word = rest.pop(0)
            flag, equals, value = word.partition("=")
            if word == "--json":
                as_json = True
            elif flag in PICTURES:
                name = value if equals else rest.pop(0) if rest else ""
                if not name:
                    raise ConfigError(f"{flag} lacks its file: write {flag} FILE")
                files[flag] = Path(os.path.expanduser(name))
            elif word.startswith("-"):
                raise ConfigError(f"unknown flag {flag}: goodput has --json, {' and '.join(PICTURES)}")
            else:
                folders.append(word)
        if len(folders) != 1:
            raise ConfigError(f"goodput takes one run folder: {USAGE}")
        return cls(Path(os.path.expanduser(folders[0])), as_json, *(files.get(flag) for flag in PICTURES))


def goodput(words: Sequence[str]) -> int:
    """Print the books of the run that `words` name, as tables or as JSON; draw their waterfall into files.

    Raises:
        ConfigError: for words that make no sense, a run without a ledger, or a file that cannot be written.
    """
    order = GoodputOrder.parse(words)
    books = fold(read_ledger(order.run))
    label = _label(order.run)
    if order.as_json:
        print(json.dumps(books.as_json() | ({"label": label} if label else {}), indent=2))
    else:
        print_books(books, labelled(str(order.run), label), table_console())
    if order.svg or order.png:
        picture = WaterfallPicture(books, labelled(order.run.resolve().name, label))
        if order.svg:
            write_picture(order.svg, "--svg", picture.svg().encode())
        if order.png:
            write_picture(order.png, "--png", picture.png())
    return 0


def _label(run: Path) -> str | None:
    """What its numbers must not stand without; a job that died early left no config.yaml, and no numbers."""
    path = run / "config.yaml"
    return label_of(read_config(path)) if path.exists() else None
