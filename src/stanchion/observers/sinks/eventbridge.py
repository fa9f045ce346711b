"""Events to an AWS EventBridge bus."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, cast

from stanchion.durations import seconds
from stanchion.errors import ConfigError
from stanchion.observers.arguments import count, delay
from stanchion.observers.containment import summary
from stanchion.observers.sinks import declaring
from stanchion.observers.sinks.http import Address, require
from stanchion.observers.sinks.packing import chunks, compact, enveloped
from stanchion.observers.sinks.refusal import Failure, Refused, deliver, report, wait_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import timedelta

    from stanchion.events import Event, Selector

_MOST_ENTRIES: Final = 10
_MOST_BYTES: Final = 256 * 1024
_TIME: Final = 14  # bytes that the Time of an entry counts for
_DETAIL_TYPE: Final = 128  # characters
_THROTTLED_WAIT: Final = 1.0  # seconds, where AWS does not say how long
_THROTTLED: Final = frozenset(
    {"ThrottlingException", "Throttling", "ThrottledException", "TooManyRequestsException"}
)
# What is wrong is the entry, or the request as it is.
_PERMANENT: Final = frozenset(
    {
        *("InvalidArgument", "MalformedDetail", "RedactionFailure", "ValidationException"),
        *("NotAuthorizedForSourceException", "NotAuthorizedForDetailTypeException"),
        *("NotAuthorizedForSource", "NotAuthorizedForDetailType", "RequestEntityTooLarge"),
    }
)


class _Client(Protocol):
    async def put_events(self, **request: Any) -> dict[str, Any]:
        """Send `Entries`, and get what became of each."""
        ...


@dataclass(frozen=True, slots=True)
class _Entry:
    event: Event
    fields: Mapping[str, Any]
    size: int


class EventBridgeSink:
    """Puts events on an EventBridge bus; `detail` is the event as CloudEvents JSON.

    An entry's time is the event's, its detail type by default the event's type. A request has at
    most 10 entries and fewer than `max_bytes` bytes as EventBridge counts them; an event that is
    larger is refused here. Entries that EventBridge refuses are sent again without the others.
    EventBridge may itself deliver an event twice, and so may this: go by the id in `detail`.
    """

    idempotent: ClassVar[bool] = True

    def __init__(
        self,
        *,
        event_bus: str = "default",
        source: str | Callable[[Event], str] = "stanchion",
        detail_type: str | Callable[[Event], str] | None = None,
        region: str | None = None,
        endpoint_url: str | None = None,
        on: Selector | None = None,
        max_bytes: int = _MOST_BYTES,
        deadline: timedelta | float | str = 4.0,
        batch_size: int = _MOST_ENTRIES,
        batch_delay: timedelta | float | str = 0,
    ) -> None:
        """Choose the bus, and what its rules can go by.

        Credentials come from where the AWS SDKs look: the environment, the shared files, a web
        identity, the container, the instance.

        Args:
            event_bus: the bus's name or ARN.
            source: what rules see as `source`, or a function of the event; not beginning with
                "aws.".
            detail_type: what rules see as `detail-type`, or a function of the event; by default
                the event's type.
            region: by default what the environment or the shared files say.
            endpoint_url: in place of the region's own, such as a VPC endpoint.
            on: the events to send, by default all.
            max_bytes: bytes of a request, at most 1048576; buses that take more than the default
                of 256 KB say so in their quotas.
            deadline: seconds that one batch may take.
            batch_size: the most events that are taken at once; a request has 10 of them.
            batch_delay: seconds that a batch may wait to fill.

        Raises:
            ConfigError: an argument cannot work, or aiobotocore is missing.
        """
        require("aiobotocore", extra="aws", owner="EventBridgeSink")
        self._bus = declaring.text("event_bus", event_bus, most=1600)
        self._source = source if callable(source) else declaring.text("source", source)
        if isinstance(source, str) and source.startswith("aws."):
            raise ConfigError.of("source", source, '"aws." is for AWS itself')
        if detail_type is None:
            detail_type = _event_type
        elif not callable(detail_type):
            declaring.text("detail_type", detail_type, most=_DETAIL_TYPE)
        self._detail_type = detail_type
        self._region = region
        if endpoint_url is not None:
            Address.of(endpoint_url, field="endpoint_url")
        self._endpoint_url = endpoint_url
        self._max_bytes = declaring.at_most(1024 * 1024, "max_bytes", max_bytes)
        self._deadline = seconds(deadline, field="deadline")
        self.batch_size = count("batch_size", batch_size)
        self.batch_delay = delay("batch_delay", batch_delay)
        self.on: Selector = declaring.selection(on, "*")
        self._client: _Client | None = None
        self._stack = AsyncExitStack()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(event_bus={self._bus!r})"

    async def start(self) -> None:
        """Make the client; nothing is sent yet.

        Raises:
            ConfigError: no region is given or configured.
        """
        if self._client is not None:
            return
        # A third of a second, most of it for reading AWS's descriptions of its services.
        session, config = await asyncio.to_thread(_prepare, self._deadline)
        from botocore.exceptions import NoRegionError  # pyright: ignore[reportMissingTypeStubs]

        try:
            context = session.create_client(
                "events",
                region_name=self._region,
                endpoint_url=self._endpoint_url,
                config=config,
            )
            self._client = cast("_Client", await self._stack.enter_async_context(context))
        except NoRegionError:
            accepted = "expected a region, here or in AWS_DEFAULT_REGION or the shared files"
            raise ConfigError.of("region", None, accepted) from None

    async def close(self) -> None:
        """Close the connections."""
        self._client = None
        await self._stack.aclose()

    async def handle_batch(self, events: Sequence[Event]) -> None:
        """Put the events on the bus.

        Raises:
            Undelivered: some were not taken, or are too large.
        """
        # "Less than", says AWS.
        most = self._max_bytes - 1
        entries = enveloped(events, self._entry, most_bytes=most)
        failures = entries.failures
        unsent = await deliver(
            chunks(entries.ready, most_items=_MOST_ENTRIES, most_bytes=most),
            partial(self._put, failures),
            deadline=self._deadline,
        )
        report(events, [*failures, *(one.of(lambda entry: entry.event) for one in unsent)])

    def _entry(self, event: Event) -> _Entry:
        source = _text(self._source, event, "source", 256)
        detail_type = _text(self._detail_type, event, "detail_type", _DETAIL_TYPE)
        detail = compact(event.to_cloudevent())
        fields = {
            "EventBusName": self._bus,
            "Source": source,
            "DetailType": detail_type,
            "Time": event.timestamp,
            "Detail": detail,
        }
        size = _TIME + sum(len(text.encode()) for text in (source, detail_type, detail))
        return _Entry(event, fields, size)

    async def _put(self, failures: list[Failure[Event]], batch: Sequence[_Entry]) -> None:
        """Send one request, and add what EventBridge did not take of it to the failures."""
        if self._client is None:
            raise declaring.not_started(self)
        from botocore.exceptions import (  # pyright: ignore[reportMissingTypeStubs]
            BotoCoreError,
            ClientError,
        )

        try:
            answer = await self._client.put_events(Entries=[entry.fields for entry in batch])
        except ClientError as error:
            raise _refusal(cast("dict[str, Any]", error.response)) from error
        except BotoCoreError as error:
            # No connection, no credentials, and the like.
            raise Refused(f"EventBridge could not be asked: {type(error).__name__}") from error
        if not answer.get("FailedEntryCount"):
            return
        by_code: dict[str, list[Event]] = defaultdict(list)
        for entry, result in zip(batch, answer["Entries"], strict=True):
            if code := result.get("ErrorCode"):
                by_code[code].append(entry.event)
        failures += [Failure(tuple(some), _entry_refusal(code)) for code, some in by_code.items()]


def _event_type(event: Event) -> str:
    return event.event_type


def _text(value: str | Callable[[Event], str], event: Event, field: str, most: int) -> str:
    if isinstance(value, str):
        return value
    try:
        text = value(event)
    # Somebody else's code: what it raises shall not hold up the other events.
    except Exception as error:
        reason = f"`{field}` for a {event.event_type}: {summary(error)}"
        raise Refused(reason, permanent=True) from error
    if not isinstance(cast("object", text), str) or not 1 <= len(text) <= most:
        reason = f"`{field}` for a {event.event_type} is not of 1 to {most} characters"
        raise Refused(reason, permanent=True)
    return text


def _prepare(deadline: float) -> tuple[Any, Any]:
    # It carries types, but no mark that says so.
    from aiobotocore.config import AioConfig  # pyright: ignore[reportMissingTypeStubs]
    from aiobotocore.session import AioSession  # pyright: ignore[reportMissingTypeStubs]

    session: Any = AioSession()
    loader = session.get_component("data_loader")
    # Each is kept by the loader, which would otherwise read them in the event loop.
    for name in ("endpoints", "partitions", "sdk-default-configuration"):
        loader.load_data(name)
    loader.load_service_model("events", "service-2")
    config = AioConfig(
        connect_timeout=deadline,
        read_timeout=deadline,
        # The manager sends again, and knows when.
        retries={"total_max_attempts": 1, "mode": "standard"},
    )
    return session, config


def _refusal(response: Mapping[str, Any]) -> Refused:
    """Get what the failure of a whole request says."""
    code = str(response.get("Error", {}).get("Code", "an error"))
    about = response.get("ResponseMetadata", {})
    headers: Mapping[str, str] = about.get("HTTPHeaders", {})
    throttled = code in _THROTTLED or about.get("HTTPStatusCode") == 429
    wait = wait_of(headers.get("retry-after"))
    return Refused(
        f"EventBridge answered {code}",
        retry_after=_THROTTLED_WAIT if throttled and wait is None else wait,
        permanent=code in _PERMANENT or about.get("HTTPStatusCode") == 413,
    )


def _entry_refusal(code: str) -> Refused:
    return Refused(
        f"EventBridge answered {code} for an entry",
        retry_after=_THROTTLED_WAIT if code in _THROTTLED else None,
        permanent=code in _PERMANENT,
    )
