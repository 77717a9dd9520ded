"""Numbers and times among the words of `switchyard schedule`."""

import math

from models.config import ConfigError


def whole(key: str, text: str) -> int:
    """Raises ConfigError unless it is a whole number, at least 1."""
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise ConfigError(f"{key}={text}: set it to a whole number, at least 1")
    return int(text)


def time(key: str, text: str, may_be_0: bool = False) -> float:
    """Raises ConfigError unless it is a time: a cell without length could not be drawn, so not 0 but where it may."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (value == 0 and not may_be_0):
        raise ConfigError(f"{key}={text}: set it to a time in any unit, {'0 or more' if may_be_0 else 'above 0'}")
    return value
