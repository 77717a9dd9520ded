"""From words on a command line to a checked JobConfig.

Hydra composes the YAML groups over the schema. Its own messages are for its developers (it proposes `+key=value` for a
misspelt key, and then accepts the key silently), so every key and group option is checked here first, and whatever
Hydra still refuses is cut down to one line.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.schema import JobConfig
from models.config import ConfigError

CONF_DIR = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Composed:
    """A configuration, and the YAML text that prints it."""

    config: JobConfig
    yaml: str


def compose(overrides: Sequence[str], extra_dir: Path | None = None) -> Composed:
    """Compose `overrides` (`model=tiny`, `train.steps=20`) over the defaults; types checked, combinations not yet.

    `extra_dir` holds further groups in the same folders (`extra_dir/model/mine.yaml`), for `--config-dir`.

    Raises:
        ConfigError: one line that says which word to change.
    """
    options = _group_options([CONF_DIR] + ([extra_dir] if extra_dir else []))
    for override in _parse(overrides):
        _check_key(override, options)
    store = ConfigStore.instance()
    store.store(name="schema", node=JobConfig)
    search = [f"hydra.searchpath=[file://{extra_dir.resolve()}]"] if extra_dir else []
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3", job_name="switchyard"):
            composed = hydra_compose("config", overrides=[*overrides, *search])
        typed = OmegaConf.to_object(composed)
        text = OmegaConf.to_yaml(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error)) from error
    assert isinstance(typed, JobConfig)
    _refuse_unknown_keys(composed)
    return Composed(typed, text)


def _group_options(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Each group's options: the YAML files in its folders."""
    groups: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.glob("*/*.yaml"):
            groups.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(names) for group, names in groups.items()}


def _parse(overrides: Sequence[str]) -> list[Override]:
    parsed = []
    for word in overrides:
        try:
            parsed += OverridesParser.create().parse_overrides([word])
        except HydraException as error:
            raise ConfigError(f"{word!r} is not of the form key=value: write, say, train.steps=20") from error
    return parsed


def _check_key(override: Override, options: dict[str, list[str]]) -> None:
    """Refuse keys and options that do not exist, whatever Hydra would do with them."""
    key = override.key_or_group
    if override.is_sweep_override():
        raise ConfigError(f"{override.input_line}: one job takes one value; start a job per value")
    if override.is_delete():
        raise ConfigError(f"{override.input_line}: no key can be deleted; set its value instead")
    if key in options:
        value = override.value()
        if value not in options[key]:
            names = ", ".join(options[key])
            raise ConfigError(f"{key}={value}: no such {key}; choose from {names}")
    elif key not in _all_keys():
        raise ConfigError(f"unknown key {key!r}{_did_you_mean(key, _all_keys())}")
    if override.is_add() or override.is_force_add():
        raise ConfigError(f"{override.input_line}: {key} exists already; leave out the +")


def _all_keys(schema: Any = JobConfig, prefix: str = "") -> list[str]:
    """Every leaf's dotted key."""
    keys = []
    for entry in fields(schema):
        inner = entry.type
        if is_dataclass(inner):
            keys += _all_keys(inner, f"{prefix}{entry.name}.")
        else:
            keys.append(prefix + entry.name)
    return keys


def _refuse_unknown_keys(composed: DictConfig) -> None:
    """YAML files of a user may hold keys that the schema lacks, and a `@package` can put them past Hydra's check."""
    known = set(_all_keys())

    def walk(node: Any, prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if isinstance(value, dict):
                walk(value, key + ".")
            elif key not in known:
                raise ConfigError(f"unknown key {key!r} in a YAML file{_did_you_mean(key, sorted(known))}")

    walk(OmegaConf.to_container(composed), "")


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    if not close:  # `steps` for `train.steps`
        close = [key for key in known if key.split(".")[-1] == word.split(".")[-1]][:1]
    return f"; did you mean {close[0]}?" if close else "; --cfg job prints them all"


def _one_line(error: Exception) -> str:
    """The line of Hydra's or OmegaConf's message that says what is wrong, with the key."""
    cause: BaseException = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), None)
    return f"{key}: {lines[0]}" if key and key not in lines[0] else lines[0]


def read_job(path: Path) -> JobConfig:
    """The configuration that a run's config.yaml holds (without its `environment`)."""
    written = OmegaConf.load(path)
    assert isinstance(written, DictConfig)
    written.pop("environment", None)
    job = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(JobConfig), written))
    assert isinstance(job, JobConfig)
    return job
