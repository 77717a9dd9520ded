"""Strategies and overlaps as a user gets them: from the YAML files."""

from typing import Any

from omegaconf import OmegaConf

from conf.options import CONF_DIR
from parallel.config import EngineName, OverlapConfig, StrategyConfig


def strategy(name: str, *words: str) -> StrategyConfig:
    """strategy=`name`, with `words` such as recompute=full. (To compose a whole job takes fifty times as long.)"""
    chosen: StrategyConfig = _read("strategy", name, StrategyConfig, words)
    return chosen


def overlap(name: str) -> OverlapConfig:
    """overlap=`name`."""
    chosen: OverlapConfig = _read("overlap", name, OverlapConfig, ())
    return chosen


def _read(group: str, name: str, schema: type, words: tuple[str, ...]) -> Any:
    written = OmegaConf.load(CONF_DIR / group / f"{name}.yaml")
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), written, OmegaConf.from_dotlist([*words])))


ALL = tuple(sorted(path.stem for path in (CONF_DIR / "strategy").glob("*.yaml")))
NAMES = tuple(name for name in ALL if strategy(name).engine is EngineName.native)
"""All that are ours: a new file is tested without being asked."""
