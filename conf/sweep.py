"""A word that stands for several: `strategy=fsdp,ep`, in Hydra's own grammar of sweeps."""

from hydra.core.override_parser.types import Glob

from conf.options import Options
from conf.overrides import parse
from models.config import ConfigError


def choices(word: str, options: Options) -> list[str]:
    """The words that `word` stands for: one for each value of its list or range, for each of a group's `options` that
    its glob() fits, or itself alone.

    Raises:
        ConfigError: for a sweep that does not list its values (interval), and a glob() that fits nothing.
    """
    parsed = parse(word)
    if parsed is None or not parsed.is_sweep_override():
        return [word]
    if not (parsed.is_choice_sweep() or parsed.is_range_sweep()):
        raise ConfigError(f"{word}: name the values, with commas between them")
    key = word.partition("=")[0]
    if isinstance(glob := parsed.value(), Glob):
        values = glob.filter(list(options.files.get(key, ())))
        if not values:
            raise ConfigError(f"{word}: fits no option; glob() is for {', '.join(options.files)}")
    else:
        values = list(map(str, parsed.sweep_string_iterator()))
    return list(dict.fromkeys(f"{key}={_truth_as_typed(value)}" for value in values))


def _truth_as_typed(value: str) -> str:
    """Hydra has Python's True of a `true`."""
    return value.lower() if value in ("True", "False") else value
