"""Durations as people write them, in the two units that the engine uses."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from stanchion.errors import ConfigError

_TEXT = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_ACCEPTED = 'a timedelta, seconds, or text such as "250ms", "30s", "1m", "1h", "1d"'
_MICROS = 1_000_000
# Ten years: far beyond any window, and microseconds since the epoch stay below 2^53 with it added.
LONGEST = 3660 * 86400.0


def seconds(value: object, *, field: str) -> float:
    """Get a duration in float seconds, above zero and at most ten years.

    Raises:
        ConfigError: `value` is no duration, is not positive, or is too long.
    """
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, bool):
        raise ConfigError.of(field, value, f"expected {_ACCEPTED}")
    elif isinstance(value, int | float):
        result = float(value)
    elif isinstance(value, str):
        found = _TEXT.fullmatch(value.strip())
        if found is None:
            raise ConfigError.of(field, value, f"expected {_ACCEPTED}")
        result = float(found[1]) * _UNIT[found[2]]
    else:
        raise ConfigError.of(field, value, f"expected {_ACCEPTED}")
    if not math.isfinite(result) or not 1e-6 <= result <= LONGEST:
        raise ConfigError.of(field, value, "expected between 1 microsecond and 3660 days")
    return result


def micros(value: object, *, field: str) -> int:
    """Get a duration in whole microseconds; errors as for `seconds`."""
    return round(seconds(value, field=field) * _MICROS)
