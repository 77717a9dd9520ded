"""From words on a command line to a typed JobConfig: Hydra composes the YAML groups over the schema."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.complaint import complaint
from conf.keys import Keys
from conf.options import CONF_DIR, Options
from conf.overrides import check_overrides, quoted
from conf.schema import JobConfig
from models.config import ConfigError


@dataclass(frozen=True)
class Composed:
    """A configuration, and the YAML text that prints it."""

    config: JobConfig
    yaml: str


def compose(words: Sequence[str], extra_dir: Path | None = None) -> Composed:
    """Compose `words` (`model=tiny`, `train.steps=20`) over the defaults; types checked, combinations not yet.

    `extra_dir` holds further options in the same folders (`extra_dir/model/mine.yaml`), for `--config-dir`.

    Raises:
        ConfigError: one line that says which word, or which line of a YAML file, to change.
    """
    keys = Keys.of(JobConfig)
    overrides = check_overrides(words, keys, Options.find(extra_dir))
    if extra_dir:
        overrides.append(f"hydra.searchpath=[{quoted(f'file://{extra_dir.resolve()}')}]")
    _store_schema()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3", job_name="switchyard"):
            composed = hydra_compose("config", overrides=overrides)
        typed = OmegaConf.to_object(composed)
        text = OmegaConf.to_yaml(composed, resolve=True)
    # The last four: what reading a user's YAML file can raise besides.
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeError, RecursionError, OSError) as error:
        raise ConfigError(complaint(error, words, keys)) from error
    assert isinstance(typed, JobConfig)
    return Composed(typed, text)


@cache
def _store_schema() -> None:
    """Where Hydra finds it. Once a process: it is a tenth of what composing takes, and a sweep composes many."""
    ConfigStore.instance().store(name="schema", node=JobConfig)


def schema_defaults() -> dict[str, Any]:
    """What every key is where nobody, and no preset, says otherwise: plain values, as in a run's config.yaml."""
    plain: dict[str, Any] = yaml.safe_load(OmegaConf.to_yaml(OmegaConf.structured(JobConfig)))
    return plain


def read_job(path: Path) -> JobConfig:
    """The configuration that a run's config.yaml holds (without its `environment`).

    Raises:
        ConfigError: if it is not one, or another version's.
    """
    try:
        # Not OmegaConf's reader, to which a text 1e3 is a number: what wrote the file was PyYAML.
        written = yaml.safe_load(path.read_text())
        if not isinstance(written, dict):
            raise ConfigError(f"{path} is not a run's config.yaml: name the folder of a run")
        written.pop("environment", None)
        job = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(JobConfig), written))
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeError, OSError) as error:
        what = complaint(error, [], Keys.of(JobConfig))
        raise ConfigError(f"{path} is not a config.yaml that this version of switchyard wrote: {what}") from error
    assert isinstance(job, JobConfig)
    return job
