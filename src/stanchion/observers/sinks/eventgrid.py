"""Events to an Azure Event Grid topic, domain or namespace topic."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, cast

from stanchion.durations import seconds
from stanchion.errors import ConfigError
from stanchion.observers.arguments import count, delay
from stanchion.observers.sinks import declaring
from stanchion.observers.sinks.http import Address, require, trusted
from stanchion.observers.sinks.packing import Packed, deliver_packed
from stanchion.observers.sinks.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta
    from pathlib import Path

    from azure.core.credentials_async import AsyncTokenCredential

    from stanchion.events import Event, Selector

_MOST_BYTES: Final = 1024 * 1024  # of a request
_BRACKETS: Final = 2
# The SDK writes the documents anew, with spaces, and the time with up to six decimals.
_SPARE: Final = 16


class _Publisher(Protocol):
    async def send(self, events: list[dict[str, Any]]) -> None: ...

    async def close(self) -> None: ...


class EventGridSink:
    """Publishes events to Azure Event Grid in the CloudEvents schema.

    A request has at most 1 MB; an event that is larger is refused here. What Event Grid refuses as
    malformed is searched for by halving the batch. Event Grid may itself deliver an event twice,
    and so may this: go by its id.
    """

    idempotent: ClassVar[bool] = True

    def __init__(
        self,
        *,
        endpoint: str,
        key: str | None = None,
        credential: AsyncTokenCredential | None = None,
        namespace_topic: str | None = None,
        on: Selector | None = None,
        ca_file: str | Path | None = None,
        deadline: timedelta | float | str = 4.0,
        batch_size: int = 100,
        batch_delay: timedelta | float | str = 0,
    ) -> None:
        """Choose where to publish, and as who.

        Args:
            endpoint: of the topic, such as
                `https://mytopic.westeurope-1.eventgrid.azure.net/api/events`, or of the namespace.
            key: an access key of the topic; never shown.
            credential: in place of a key, such as azure-identity's `DefaultAzureCredential` from
                `azure.identity.aio`; it is not closed by the sink.
            namespace_topic: the name of the topic where `endpoint` is a namespace's.
            on: the events to send, by default all.
            ca_file: certificates to trust in place of the system's.
            deadline: seconds that one batch may take.
            batch_size: the most events in a request.
            batch_delay: seconds that a batch may wait to fill.

        Raises:
            ConfigError: an argument cannot work, or azure-eventgrid or aiohttp is missing.
        """
        for package, name in (("azure", "azure-eventgrid"), ("aiohttp", "aiohttp")):
            require(package, name, extra="azure", owner="EventGridSink")
        self._address = Address.of(endpoint, field="endpoint", private=True)
        if (key is None) == (credential is None):
            raise ConfigError("EventGridSink: expected one of key and credential")
        if key is not None and not (isinstance(cast("object", key), str) and key):
            raise ConfigError("key: expected text")
        self._key, self._credential = key, credential
        self._namespace_topic = (
            None if namespace_topic is None else declaring.text("namespace_topic", namespace_topic)
        )
        trusted(ca_file)  # here, and not at the first event, is where a wrong file is told
        self._ca_file = ca_file
        self._deadline = seconds(deadline, field="deadline")
        self.batch_size = count("batch_size", batch_size)
        self.batch_delay = delay("batch_delay", batch_delay)
        self.on: Selector = declaring.selection(on, "*")
        self._client: _Publisher | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address!r})"

    async def start(self) -> None:
        """Make the client; nothing is sent yet."""
        if self._client is not None:
            return
        # 50 ms, and only who publishes needs it.
        from azure.core.credentials import AzureKeyCredential
        from azure.eventgrid.aio import EventGridPublisherClient

        client: Any = EventGridPublisherClient(
            self._address.url,
            AzureKeyCredential(self._key) if self._key else cast("Any", self._credential),
            namespace_topic=self._namespace_topic,
            # The manager sends again, and knows when.
            retry_total=0,
            permit_redirects=False,
            connection_timeout=self._deadline,
            read_timeout=self._deadline,
            connection_verify=True if self._ca_file is None else str(self._ca_file),
        )
        self._client = cast("_Publisher", client)

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def handle_batch(self, events: Sequence[Event]) -> None:
        """Publish the events.

        Raises:
            Undelivered: some were not taken, or are too large.
        """
        await deliver_packed(
            events,
            _packed,
            self._send,
            most_items=self.batch_size,
            most_bytes=_MOST_BYTES - _BRACKETS,
            deadline=self._deadline,
        )

    async def _send(self, batch: Sequence[Packed]) -> None:
        if self._client is None:
            raise declaring.not_started(self)
        from azure.core.exceptions import AzureError, HttpResponseError

        try:
            await self._client.send([item.document for item in batch])
        except HttpResponseError as error:
            # For a 404 the SDK raises an error of its own, without the answer.
            cause = error.__cause__
            told = cause if isinstance(cause, HttpResponseError) else error
            response: Any = told.response
            if told.status_code is None or response is None:
                raise Refused(f"{self._address.origin}: {type(error).__name__}") from None
            wait: str | None = response.headers.get("Retry-After")
            raise Refused.by_status(self._address.origin, told.status_code, wait) from None
        except AzureError as error:
            # No connection, no token, and the like.
            raise Refused(f"{self._address.origin}: {type(error).__name__}") from None


def _packed(event: Event) -> Packed:
    document = event.to_cloudevent()
    # As the SDK writes it: spaces after commas and colons, and \u for all that is not ASCII.
    return Packed(event, document, len(json.dumps(document)) + _SPARE)
