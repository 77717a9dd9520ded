"""Every strategy as a user types it: from the YAML files, each with a world that it fits."""

from conf.compose import compose
from conf.options import CONF_DIR
from parallel.config import StrategyConfig

NAMES = tuple(sorted(path.stem for path in (CONF_DIR / "strategy").glob("*.yaml")))
"""All of them: a new file is tested without being asked."""


def strategy(name: str, *words: str) -> StrategyConfig:
    """strategy=`name`, with further `words` as typed behind it."""
    return compose([f"strategy={name}", *words]).config.strategy
