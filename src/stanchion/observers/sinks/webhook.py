"""Events, or alerts, to an HTTP endpoint of the user's own: signed, in CloudEvents batches."""

from __future__ import annotations

import hashlib
import time
import uuid
from typing import TYPE_CHECKING, Any, ClassVar, Final

from stanchion.durations import seconds
from stanchion.events import Event, JsonObject, Selector, UtcTime
from stanchion.observers.arguments import count, delay
from stanchion.observers.sinks import declaring
from stanchion.observers.sinks.alertbook import AlertBook
from stanchion.observers.sinks.alerting import Alert, AlertAction, checked_rules, interests
from stanchion.observers.sinks.http import (
    Address,
    HttpReceiver,
    checked_headers,
    require,
    trusted,
)
from stanchion.observers.sinks.outbox import Outbox
from stanchion.observers.sinks.packing import Packed, compact, deliver_packed
from stanchion.observers.sinks.signing import Signer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta
    from pathlib import Path

    from stanchion.observers.sinks.alerting import AlertRule

_TYPE: Final = "application/cloudevents-batch+json; charset=utf-8"
_RESERVED: Final = frozenset(
    {
        *("content-type", "content-length", "transfer-encoding", "host", "connection"),
        *("webhook-id", "webhook-timestamp", "webhook-signature"),
    }
)
_MOST_BYTES: Final = 1_000_000
# For ids of alerts, which are the same whenever the same alert is sent again.
_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_DNS, "alerts.stanchion")


class AlertEvent(Event):
    """What a webhook with rules is told; select this class for both kinds.

    `key` names the group of the rule and is the same in both. `count` events came since the group
    was last told of, the first at `since`; the latest is `latest_type` with the id `latest_id`.
    """

    rule: str
    severity: str
    key: str
    text: str
    group: JsonObject
    count: int
    since: UtcTime
    latest_type: str
    latest_id: str


class AlertTriggered(AlertEvent, type="alert:triggered"):
    """A rule's condition holds for a group."""


class AlertResolved(AlertEvent, type="alert:resolved"):
    """What a rule had told of a group is over."""


class WebhookSink:
    """POSTs events to a URL as a CloudEvents batch; with `rules`, alerts instead.

    Signed with a `secret`, a request carries `webhook-id`, `webhook-timestamp` and
    `webhook-signature` as Standard Webhooks has them. The id is made from the events' ids, so it
    is the same when the same batch is sent again. Redirects lead nowhere but to the same host.

    200 to 299 means taken. 400, 413 and 422 mean that something in the batch is refused: it is
    halved until that is found. Whatever else comes back, the rest of the batch is sent again later;
    Retry-After says when.
    """

    idempotent: ClassVar[bool] = True

    def __init__(
        self,
        *,
        url: str,
        secret: str | Sequence[str] | None = None,
        rules: Sequence[AlertRule | Mapping[str, Any]] | None = None,
        on: Selector | None = None,
        headers: Mapping[str, str] | None = None,
        ca_file: str | Path | None = None,
        deadline: timedelta | float | str = 4.0,
        batch_size: int = 100,
        batch_delay: timedelta | float | str = 0,
    ) -> None:
        """Choose where to send what.

        Args:
            url: an http or https URL; it is never shown but for its origin.
            secret: 24 to 64 bytes in base64, after `whsec_` or alone; several while they are
                changed. None leaves the requests unsigned.
            rules: send alerts by these rules (see `AlertRule`), as events of the types
                `alert:triggered` and `alert:resolved`.
            on: the events to send, by default all; with rules, what they are about.
            headers: sent with each request, such as an Authorization; never shown.
            ca_file: certificates to trust in place of the system's.
            deadline: seconds that one batch may take.
            batch_size: the most events in a request; one has at most a million bytes.
            batch_delay: seconds that a batch may wait to fill.

        Raises:
            ConfigError: an argument cannot work, or aiohttp is missing.
        """
        require("aiohttp", extra="http", owner="WebhookSink")
        self._address = Address.of(url)
        self._signer = Signer(secret)
        self._headers = {
            **checked_headers(headers, reserved=_RESERVED),
            "Content-Type": _TYPE,
        }
        self._deadline = seconds(deadline, field="deadline")
        self.batch_size = count("batch_size", batch_size)
        self.batch_delay = delay("batch_delay", batch_delay)
        self._http = HttpReceiver(self._address, trust=trusted(ca_file))
        self._outbox: Outbox | None = None
        self.on: Selector = declaring.selection(on, "*")
        if rules is not None:
            checked = checked_rules(rules)
            self.on = declaring.selection(on, interests(checked))
            self._outbox = Outbox(
                AlertBook(checked),
                self._send_alerts,
                name=repr(self),
                most=self.batch_size,
                deadline=self._deadline,
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address!r})"

    async def start(self) -> None:
        """Make the pool of connections; none is opened yet."""
        await self._http.start()
        if self._outbox is not None:
            self._outbox.start()

    async def close(self) -> None:
        """Close the connections."""
        if self._outbox is not None:
            await self._outbox.close()
        await self._http.close()

    async def handle_batch(self, events: Sequence[Event]) -> None:
        """Send the events, or the alerts that follow from them.

        Raises:
            Undelivered: some were not taken.
        """
        if self._outbox is not None:
            await self._outbox.deliver(events)
            return
        await deliver_packed(
            events,
            _packed,
            self._send,
            most_items=self.batch_size,
            most_bytes=_MOST_BYTES,
            deadline=self._deadline,
        )

    async def _send(self, batch: Sequence[Packed]) -> None:
        documents = [item.document for item in batch]
        body = compact(documents).encode()
        named = "\n".join(f"{one['source']} {one['id']}" for one in documents)
        message_id = f"msg_{hashlib.sha256(named.encode()).hexdigest()[:32]}"
        signature = self._signer.headers(message_id, int(time.time()), body)
        await self._http.post(body, self._headers | signature)

    async def _send_alerts(self, alerts: Sequence[Alert]) -> None:
        await self._send([_packed(_event_of(alert)) for alert in alerts])


def _packed(event: Event) -> Packed:
    document = event.to_cloudevent()
    return Packed(event, document, len(compact(document).encode()) + 1)


def _event_of(alert: Alert) -> AlertEvent:
    kind = AlertTriggered if alert.action is AlertAction.TRIGGER else AlertResolved
    key = alert.dedup_key("stanchion")
    return kind(
        id=str(uuid.uuid5(_NAMESPACE, f"{kind.event_type}\n{key}\n{alert.event.id}")),
        timestamp=alert.event.timestamp,
        rule=alert.rule.name,
        severity=alert.rule.severity,
        key=key,
        text=alert.text,
        group=alert.fields,
        count=alert.count,
        since=alert.since,
        latest_type=alert.event.event_type,
        latest_id=alert.event.id,
    )
