"""Words of a command that are no job's."""

from collections.abc import Mapping, Sequence

from models.config import ConfigError

RUN_KEYS = ("run.dir", "run.name", "run.root")


def take_own(words: Sequence[str], defaults: Mapping[str, str | None]) -> tuple[dict[str, str | None], list[str]]:
    """The last values of our own words, whose `defaults` are by key, and the job's words."""
    given, rest = dict(defaults), []
    for word in words:
        key, equals, value = word.partition("=")
        if key in given and equals:
            given[key] = value
        else:
            rest.append(word)
    return given, rest


def truth(key: str, value: str | None) -> bool:
    """What `key=value` says.

    Raises:
        ConfigError: unless it is true or false.
    """
    if value not in ("true", "false"):
        raise ConfigError(f"{key}={value}: set it to true or false")
    return value == "true"


def refuse_run_folders(words: Sequence[str], command: str, where: str) -> None:
    """Refuse the name of a run where `command` gives names, in `where`.

    Raises:
        ConfigError: naming the word.
    """
    for word in words:
        if word.partition("=")[0] in RUN_KEYS:
            raise ConfigError(f"{word}: {command} names the run folders, in {where}; leave it out")
