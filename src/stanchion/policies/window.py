"""`WindowPolicy`: when events may happen at all: business hours, and freezes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr

from stanchion.errors import ConfigError
from stanchion.policies.deciding import ImmediatePolicy
from stanchion.policies.fields import as_tuple
from stanchion.policies.hours import (
    Minutes,
    Span,
    moment,
    open_spans,
    opening,
    weekdays,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stanchion.decisions import Verdict
    from stanchion.events import Event

_AHEAD: Final = 15  # days: a week has every day, and some time to spare on either side of it
_LAST: Final = datetime(9999, 1, 1, tzinfo=UTC)
_ACCEPTED: Final = "expected a date, or a date and time such as 2026-12-24T18:00"


class Closed(StrEnum):
    """Why a `WindowPolicy` vetoes."""

    HOURS = "outside_hours"
    FREEZE = "freeze"


class Freeze(BaseModel):
    """A time in which nothing happens, from `start` to `end`, and why.

    Both are dates, where `end` is the last day of it, or dates and times on the policy's clock,
    where it is over at `end`. Without an `end` it is the one day.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: datetime | date | str
    end: datetime | date | str | None = None
    reason: str = "freeze"

    def span(self, owner: str, zone: ZoneInfo) -> Span:
        """Get it as real time.

        Raises:
            ConfigError: one end cannot be read, or it ends before it begins.
        """
        last = self.start if self.end is None else self.end
        try:
            start = self._at(f"{owner}: start", self.start, zone, is_end=False)
            end = self._at(f"{owner}: end", last, zone, is_end=True)
        except OverflowError:
            raise ConfigError.of(f"{owner}: end", last, "expected before the year 9999") from None
        if end <= start:
            raise ConfigError.of(f"{owner}: end", last, "expected after its start")
        return start, end

    @staticmethod
    def _at(owner: str, value: datetime | date | str, zone: ZoneInfo, *, is_end: bool) -> datetime:
        if isinstance(value, str):
            try:
                whole = len(value) <= len("2026-12-24")
                value = date.fromisoformat(value) if whole else datetime.fromisoformat(value)
            except ValueError:
                raise ConfigError.of(owner, value, _ACCEPTED) from None
        if isinstance(value, datetime):
            if value.tzinfo is not None:
                return value.astimezone(UTC)
            minutes = value.hour * 60 + value.minute
            rest = timedelta(seconds=value.second, microseconds=value.microsecond)
            return moment(value.date(), minutes, zone, last=is_end) + rest
        return moment(value + timedelta(days=is_end), 0, zone)


@dataclass(frozen=True, slots=True)
class _State:
    """What is so from `since` until `until`: open, or closed for a reason."""

    since: datetime
    until: datetime
    closed: Closed | None = None
    detail: str = ""


class WindowPolicy(ImmediatePolicy):
    """Vetoes events outside opening hours, and within freezes; `retry_after` is when it opens.

    `hours` maps days ("mon-fri", "sat,sun", "daily") to hours ("09:00-17:00", or several) on the
    clock of `timezone`; without them it is always open. `freezes` are `Freeze`s, or mappings with
    their fields. Where clocks go forward, a time that is left out counts as the moment of the
    change; where they go back, hours begin at the first and end at the second time of that name.
    `retry_after` is None where it does not open again. `clock` gives seconds since 1970, for tests.

    Raises:
        ConfigError: a field that cannot work; the text names it.
    """

    timezone: str = "UTC"
    hours: Mapping[str, str | Sequence[str]] | None = None
    freezes: Annotated[Sequence[Freeze], AfterValidator(as_tuple)] = ()
    clock: Callable[[], float] = Field(default=time.time, repr=False)

    _zone: ZoneInfo = PrivateAttr()
    _hours: dict[int, tuple[Minutes, ...]] = PrivateAttr(
        default_factory=dict[int, tuple[Minutes, ...]]
    )
    _freezes: tuple[tuple[Span, str], ...] = PrivateAttr(default=())
    _state: _State | None = PrivateAttr(default=None)

    def check(self) -> None:
        """Read hours and freezes; raises ConfigError."""
        super().check()
        try:
            self._zone = ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ConfigError.of(
                f"{self.owner}: timezone", self.timezone, 'expected a name such as "Europe/Berlin"'
            ) from None
        if self.hours is None and not self.freezes:
            raise ConfigError(f"{self.owner}: give hours, freezes or both")
        for days, texts in (self.hours or {}).items():
            place = f"{self.owner}: hours"
            each = (texts,) if isinstance(texts, str) else texts
            spans = tuple(opening(f"{place}[{days!r}]", text) for text in each)
            for day in weekdays(place, days):
                self._hours[day] = self._hours.get(day, ()) + spans
        self._freezes = tuple(
            (freeze.span(f"{self.owner}: freezes[{index}]", self._zone), freeze.reason)
            for index, freeze in enumerate(self.freezes)
        )

    async def decide(self, event: Event) -> Verdict:
        """Get whether it is open now."""
        del event
        now = datetime.fromtimestamp(self.clock(), UTC)
        state = self._state
        if state is None or not state.since <= now < state.until:
            self._state = state = self._at(now)
        if state.closed is None:
            return self.admits()
        never = state.until == _LAST
        wait = None if never else (state.until - now) / timedelta(seconds=1)
        return self.refuses(state.closed, detail=state.detail, retry_after=wait)

    def _at(self, now: datetime) -> _State:
        for start, end in without(self._spans(now), (span for span, _ in self._freezes)):
            if start <= now < end:
                return _State(now, end)
            if start > now:
                return self._closed(now, start)
        return self._closed(now, _LAST)

    def _spans(self, now: datetime) -> Iterable[Span]:
        if self.hours is None:
            yield now, _LAST
            return
        # What lies within a freeze need not be looked at, however long it is.
        while ends := [end for (start, end), _ in self._freezes if start <= now < end]:
            now = max(ends)
        day = now.astimezone(self._zone).date() - timedelta(days=1)
        while self._hours and day.year < _LAST.year - 1:
            yield from open_spans(self._hours, self._zone, day, _AHEAD)
            day += timedelta(days=_AHEAD)

    def _closed(self, now: datetime, until: datetime) -> _State:
        why = [reason for (start, end), reason in self._freezes if start <= now < end]
        opens = "does not open again"
        if until != _LAST:
            local = until.astimezone(self._zone)
            opens = f"opens {local:%Y-%m-%d %H:%M:%S} {self.timezone}"
        if why:
            return _State(now, until, Closed.FREEZE, f"{why[0]}; {opens}")
        return _State(now, until, Closed.HOURS, opens)
