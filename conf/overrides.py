"""The `key=value` words of a command line, checked before Hydra reads them.

Hydra's own messages are for its developers: it proposes `+key=value` for a misspelt key, and then takes the key
silently. So keys, options and the form of a value are judged here, and what is left for Hydra is a value's type.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.keys import Keys
from conf.options import Options
from models.config import ConfigError

BOOLS = ("true", "false", "yes", "no", "on", "off", "1", "0")


def check_overrides(words: Sequence[str], keys: Keys, options: Options) -> list[str]:
    """`words`, as Hydra is to read them. Where two set the same key, the last one counts.

    Raises:
        ConfigError: for the first word whose key or option does not exist, or whose value is not one.
    """
    return [_check(word, keys, options) for word in words]


def typed_value(key: str, words: Sequence[str]) -> str | None:
    """What `words` set `key` to, as it was typed; None if they do not."""
    typed = [value for name, equals, value in (word.partition("=") for word in words) if equals and name == key]
    return typed[-1] if typed else None


def quoted(text: str) -> str:
    """`text` in Hydra's grammar, where a bare word holds neither accents nor brackets."""
    return QuotedString(text, Quote.single).with_quotes()


def _check(word: str, keys: Keys, options: Options) -> str:
    if not word.isprintable():
        raise ConfigError(f"{word!r} holds a character that cannot be printed: leave it out")
    name, equals, value = word.partition("=")
    key = name.lstrip("+~")
    known = key in keys.types or key in keys.names
    _check_foreign_key(word, key, value)
    for name_of_list in keys.items:
        if key.startswith((f"{name_of_list}[", f"{name_of_list}.")):
            raise ConfigError(f"{word}: {name_of_list} is set as a whole: {name_of_list}=[{{KEY: VALUE, …}}, …]")
    if not known and (not equals or not key):
        raise ConfigError(f"{word!r} is not of the form key=value: write, say, train.steps=20")
    if not known:
        raise ConfigError(keys.unknown(key))
    if name.startswith("~"):
        raise ConfigError(f"{word}: a key cannot be taken away; set its value instead")
    if name.startswith("+"):
        raise ConfigError(f"{word}: {key} is there already; leave out the +")
    if not equals:
        raise ConfigError(f"{word} has no value: write {key}=VALUE, without spaces")
    if key in options.files:
        return _check_option(key, value, options)
    if key in keys.names:
        raise ConfigError(f"{word}: {keys.section(key)}")
    return _check_value(key, value, keys)


def _check_foreign_key(word: str, key: str, value: str) -> None:
    """Keys that mean something elsewhere."""
    if key == "nproc":
        raise ConfigError(
            f"{word}: the number of ranks is the launcher's: switchyard train nproc=N …, "
            "or torchrun --nproc-per-node N -m train …"
        )
    if key.replace("/", ".").split(".")[0] == "hydra":
        raise ConfigError(f"{word}: Hydra composes and does no more: leave its keys out (run.dir names the run folder)")
    if "@" in key:
        raise ConfigError(f"{word}: an option has one place: write {key.partition('@')[0]}={value}")
    if key != key.strip() != "":
        raise ConfigError(f"{word!r}: leave no space around the =, as in {key.strip()}={value.strip()}")


def _check_option(group: str, value: str, options: Options) -> str:
    option = value.strip("'\"")
    if option in options.files[group]:
        return f"{group}={quoted(option)}"
    _refuse_sweep(group, value)
    raise ConfigError(options.unknown(group, value))


def _check_value(key: str, value: str, keys: Keys) -> str:
    word = f"{key}={value}"
    _refuse_sweep(key, value)
    parsed = parse(word)
    if key in keys.items:
        _check_items(key, value, parsed, keys)
        return word
    if str in keys.kinds(key):
        # As it was typed: Hydra would make 1000.0 of a run's name 1e3, and refuse a path with an accent in it.
        literal = value.lower() == "null" or value.startswith(("'", '"', "[", "{"))
        return word if literal and parsed else f"{key}={quoted(value)}"
    # OmegaConf takes any whole number for a bool.
    no_bool = bool in keys.kinds(key) and "${" not in value and value.strip("'\"").lower() not in BOOLS
    if parsed is None or no_bool:
        raise ConfigError(f"{word}: set it to {keys.expected(key)}")
    return word


def _check_items(key: str, value: str, parsed: Override | None, keys: Keys) -> None:
    """OmegaConf judges a list's items too, but its messages do not say which item was wrong."""
    items = parsed.value() if parsed else None
    if not isinstance(items, list):
        in_quotes = "; a text goes in quotes if it is more than letters and digits" if value.startswith("[") else ""
        raise ConfigError(f"{key}={value}: set it to {keys.expected(key)}{in_quotes}")
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise ConfigError(f"{key}[{index}]={_as_typed(item)}: set it to {keys.expected(f'{key}[{index}]')}")
        for name, typed in item.items():
            inner = f"{key}[{index}].{name}"
            if keys.type_of(inner) is None:
                raise ConfigError(keys.unknown(inner))
            text = typed.text if isinstance(typed, QuotedString) else typed
            if not _fits(text, name, keys.items[key], is_text=str in keys.kinds(inner)):
                raise ConfigError(f"{inner}={_as_typed(text)}: set it to {keys.expected(inner)}")


def _fits(value: object, name: str, kind: Any, is_text: bool) -> bool:
    """Whether the field `name` of the dataclass `kind` takes `value`."""
    if "${" in str(value):  # what it stands for is known only when all is composed
        return True
    if is_text and isinstance(value, bool | float):  # it was typed without quotes, and would be spelt in another way
        return False
    try:
        OmegaConf.merge(OmegaConf.structured(kind), {name: value})
    except OmegaConfBaseException:
        return False
    return value != MISSING


def _as_typed(value: object) -> str:
    """A value that Hydra has read, as it stands on a command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _refuse_sweep(key: str, value: str) -> None:
    parsed = parse(f"{key}={value}")
    if parsed and parsed.is_sweep_override():
        raise ConfigError(f"{key}={value}: one job takes one value; start a job for each")


def parse(word: str) -> Override | None:
    """As Hydra reads it; None if it cannot."""
    try:
        return OverridesParser.create().parse_overrides([word])[0]
    except (HydraException, ValueError, RecursionError):  # the last two: a number or a nesting without end
        return None
