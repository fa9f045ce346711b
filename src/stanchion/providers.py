"""What model providers say of their own limits, read from response headers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import TYPE_CHECKING

from stanchion.durations import LONGEST

if TYPE_CHECKING:
    from collections.abc import Mapping

_OPENAI = re.compile(r"x-ratelimit-(limit|remaining|reset)-([a-z0-9-]+)")
_ANTHROPIC = re.compile(r"anthropic-ratelimit-([a-z0-9-]+)-(limit|remaining|reset)")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_ISO = re.compile(r"\d{4}-\d{2}-\d{2}")
# No figure is that long; what is beyond is cut off, so that it takes no time to find it unreadable.
_LONGEST = 100
_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class ProviderLimit:
    """One of a provider's limits: units, units left, and seconds until it is full again."""

    limit: int | None = None
    remaining: int | None = None
    reset_after: float | None = None


@dataclass(frozen=True, slots=True)
class ProviderLimits:
    """What one response said: limits by name, such as requests, tokens and input_tokens.

    `retry_after` are the seconds before which the provider admits nothing.
    """

    limits: Mapping[str, ProviderLimit]
    retry_after: float | None = None


def parse_limits(headers: Mapping[str, str], *, now: datetime | None = None) -> ProviderLimits:
    """Get the limits that response headers tell, OpenAI-style and Anthropic-style.

    OpenAI-style: `x-ratelimit-remaining-tokens: 149984`, `x-ratelimit-reset-tokens: 6m0s`.
    Anthropic-style: `anthropic-ratelimit-tokens-remaining: 90000`, with a reset in RFC 3339 that
    counts from the response's own `date`, else from `now`. `retry-after` is seconds or a date.
    A header that cannot be read is left out: figures from outside must not stop the work.
    """
    lower = {name.lower(): value[:_LONGEST].strip() for name, value in headers.items()}
    since = _date(lower.get("date", "")) or now or datetime.now(UTC)
    found: dict[str, dict[str, float]] = {}
    for name, value in lower.items():
        if match := _OPENAI.fullmatch(name):
            field, limit = match.groups()
        elif match := _ANTHROPIC.fullmatch(name):
            limit, field = match.groups()
        else:
            continue
        number = _seconds(value, since) if field == "reset" else _count(value)
        if number is not None:
            found.setdefault(limit.replace("-", "_"), {})[field] = number
    retry = lower.get("retry-after")
    if (milliseconds := _count(lower.get("retry-after-ms", ""))) is not None:
        retry_after: float | None = milliseconds / 1000
    else:
        retry_after = None if retry is None else _seconds(retry, since)
    return ProviderLimits(
        MappingProxyType({name: _limit(fields) for name, fields in found.items()}), retry_after
    )


def _limit(fields: Mapping[str, float]) -> ProviderLimit:
    limit, remaining = fields.get("limit"), fields.get("remaining")
    return ProviderLimit(
        None if limit is None else int(limit),
        None if remaining is None else int(remaining),
        fields.get("reset"),
    )


def _count(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,15}", text) else None


def _seconds(text: str, since: datetime) -> float | None:
    spans = _SPAN.findall(text)
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        found = float(text)
    elif spans and "".join(number + unit for number, unit in spans) == text:
        found = sum(float(number) * _UNIT[unit] for number, unit in spans)
    elif moment := _date(text):
        found = max(0.0, (moment - since).total_seconds())
    else:
        return None
    # In whole microseconds, and no longer than any window: what is beyond is no limit's figure.
    return round(found, 6) if found <= LONGEST else None


def _date(text: str) -> datetime | None:
    parse = datetime.fromisoformat if _ISO.match(text) else parsedate_to_datetime
    try:
        moment = parse(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
