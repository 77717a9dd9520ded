"""The points of a comparison: configurations with names, from words that stand for several."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from conf.options import Options
from conf.sweep import choices
from models.config import ConfigError

LONGEST_NAME = 100
"""Characters: a run folder and its log are called by it."""


@dataclass(frozen=True)
class Point:
    """One configuration."""

    name: str
    words: tuple[str, ...]
    """Of a job, without its run folder."""
    values: dict[str, str] = field(default_factory=dict, compare=False)
    """Of the keys that have several, as typed: what distinguishes it."""


def points_of(
    words: Sequence[str],
    configs: Mapping[str, Sequence[str]] | None,
    options: Options,
    defaults: Mapping[str, str] | None = None,
) -> list[Point]:
    """The points that `words` stand for: the product of their lists, for each of `configs` (name → more words).
    `defaults` are values of a point's job where its words do not say otherwise.

    A point is named by what distinguishes it: its name in `configs`, and its values of the lists; one alone by its
    strategy.

    Raises:
        ConfigError: for a sweep without values.
    """
    points: list[Point] = []
    for name, more in ({"": []} if configs is None else configs).items():
        values = {key: choices(word, options) for key, word in _last_of_each([*words, *more]).items()}
        given = {key: listed[0] for key, listed in values.items()}
        several = {key: listed for key, listed in values.items() if len(listed) > 1}
        for chosen in product(*several.values()):
            merged = given | dict(zip(several, chosen, strict=True))
            labels = [_label(key, merged[key], options) for key in several]
            called = "-".join(filter(None, [name, *labels])) or _alone(merged)
            typed = {key: merged[key].partition("=")[2] for key in several}
            points.append(Point(called, _with_defaults(merged, defaults or {}), typed))
    return points


def _last_of_each(words: Iterable[str]) -> dict[str, str]:
    """By key, the word that counts."""
    return {word.partition("=")[0]: word for word in words}


def _with_defaults(words: Mapping[str, str], defaults: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(words.values()) + tuple(f"{key}={value}" for key, value in defaults.items() if key not in words)


def _label(key: str, word: str, options: Options) -> str:
    """What stands for a word in a name: an option alone; a value with the last part of its key."""
    value = re.sub(r"[^\w.+]+", "_", word.partition("=")[2]).strip("_")
    return value if key in options.files else f"{key.rpartition('.')[2]}={value}"


def _alone(words: Mapping[str, str]) -> str:
    return words.get("strategy", "strategy=default").partition("=")[2]


def check_names(points: Sequence[Point], advice: str) -> None:
    """Refuse names that no folder can have, or that two points have. `advice`: what to do about it.

    Raises:
        ConfigError: naming the first.
    """
    names = [point.name for point in points]
    for name in names:
        if not re.fullmatch(r"[\w.+=-]+", name) or name.startswith(".") or len(name) > LONGEST_NAME:
            raise ConfigError(
                f"a point called {name!r}, which names a folder of letters, digits and ._+=-, {LONGEST_NAME} at most: "
                f"{advice}"
            )
        if names.count(name) > 1:
            raise ConfigError(f"two points are called {name}: {advice}")
