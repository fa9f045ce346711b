"""Alerts to PagerDuty, through version 2 of its Events API."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from stanchion.durations import seconds
from stanchion.errors import ConfigError
from stanchion.events import InvalidEvent
from stanchion.observers.arguments import count, delay
from stanchion.observers.sinks import declaring
from stanchion.observers.sinks.alertbook import AlertBook
from stanchion.observers.sinks.alerting import (
    DEFAULT_RULES,
    AlertAction,
    checked_rules,
    interests,
)
from stanchion.observers.sinks.http import Address, HttpReceiver, require, trusted
from stanchion.observers.sinks.outbox import Outbox
from stanchion.observers.sinks.packing import compact
from stanchion.observers.sinks.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta
    from pathlib import Path

    from stanchion.events import Event, Selector
    from stanchion.observers.sinks.alerting import Alert, AlertRule

_URL: Final = "https://events.pagerduty.com/v2/enqueue"
_KEY: Final = re.compile(r"[A-Za-z0-9]{32}")
_ACCEPTED: Final = 202
_SUMMARY: Final = 1024  # characters
_DETAILS: Final = 256_000  # bytes of an event, where a request has 512 KB


class PagerDutySink:
    """Triggers and resolves PagerDuty incidents.

    Each group of a rule is one incident: what comes again adds to it, in whichever process, and
    what closes the group resolves it, also one that was opened before this process began.
    """

    idempotent: ClassVar[bool] = True

    def __init__(
        self,
        *,
        routing_key: str,
        rules: Sequence[AlertRule | Mapping[str, Any]] = DEFAULT_RULES,
        source: str = "stanchion",
        on: Selector | None = None,
        url: str = _URL,
        ca_file: str | Path | None = None,
        deadline: timedelta | float | str = 4.0,
        batch_size: int = 100,
        batch_delay: timedelta | float | str = 1.0,
    ) -> None:
        """Choose where to send which alerts.

        Args:
            routing_key: the integration key of the service, 32 letters and digits; never shown.
            rules: when to trigger and resolve (see `AlertRule`); by default when a circuit opens
                and closes, when a quota crosses a threshold, and when a policy could not be asked.
            source: what is affected, such as the name of the system; incidents of different
                sources are different.
            on: the events to look at, by default those that the rules are about.
            url: of the Events API; `https://events.eu.pagerduty.com/v2/enqueue` in the EU.
            ca_file: certificates to trust in place of the system's.
            deadline: seconds that one batch may take.
            batch_size: the most events that are looked at together.
            batch_delay: seconds that events may wait for others, to be told of as one.

        Raises:
            ConfigError: an argument cannot work, or aiohttp is missing.
        """
        require("aiohttp", extra="http", owner="PagerDutySink")
        if not isinstance(cast("object", routing_key), str) or not _KEY.fullmatch(routing_key):
            raise ConfigError("routing_key: expected 32 letters and digits")
        self._routing_key = routing_key
        self._source = declaring.text("source", source)
        self._address = Address.of(url, private=True)
        self._http = HttpReceiver(self._address, trust=trusted(ca_file))
        self._deadline = seconds(deadline, field="deadline")
        self.batch_size = count("batch_size", batch_size)
        self.batch_delay = delay("batch_delay", batch_delay)
        checked = checked_rules(rules)
        self.on: Selector = declaring.selection(on, interests(checked))
        self._outbox = Outbox(
            # PagerDuty passes over what closes an incident that is not open.
            AlertBook(checked, resolve_unknown=True),
            self._post,
            name=repr(self),
            most=1,
            deadline=self._deadline,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address!r})"

    async def start(self) -> None:
        """Make the pool of connections; none is opened yet."""
        await self._http.start()
        self._outbox.start()

    async def close(self) -> None:
        """Close the connections."""
        await self._outbox.close()
        await self._http.close()

    async def handle_batch(self, events: Sequence[Event]) -> None:
        """Send the alerts that follow from the events.

        Raises:
            Undelivered: some were not taken.
        """
        await self._outbox.deliver(events)

    async def _post(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            body = compact(self._message(alert)).encode()
            status = await self._http.post(body, {"Content-Type": "application/json"})
            if status != _ACCEPTED:
                reason = f"{self._address.origin} answered {status}, but not as PagerDuty does"
                raise Refused(reason)

    def _message(self, alert: Alert) -> dict[str, Any]:
        message: dict[str, Any] = {
            "routing_key": self._routing_key,
            "event_action": alert.action,
            "dedup_key": alert.dedup_key(self._source),
        }
        if alert.action is AlertAction.RESOLVE:
            return message
        more = f" (and {alert.more} more)" if alert.more else ""
        text = alert.text
        room = _SUMMARY - len(more)
        payload: dict[str, Any] = {
            "summary": (text if len(text) <= room else f"{text[: room - 1]}…") + more,
            "source": self._source,
            "severity": alert.rule.severity,
            "timestamp": alert.event.timestamp.isoformat(),
            "class": alert.event.event_type,
            "group": alert.rule.name,
            "custom_details": {
                "events": alert.count,
                "since": alert.since.isoformat(),
                **alert.fields,
                "latest": _details(alert.event),
            },
        }
        return message | {"client": "stanchion", "payload": payload}


def _details(event: Event) -> object:
    try:
        document = event.to_cloudevent()
    except InvalidEvent:
        return f"{event.id} (it does not fit JSON)"
    size = len(compact(document).encode())
    return document if size <= _DETAILS else f"{event.id} (left out: {size} bytes)"
