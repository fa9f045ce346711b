"""Events to Apache Pulsar."""

from __future__ import annotations

import asyncio
import math
import os
import re
from contextlib import suppress
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from stanchion.durations import seconds
from stanchion.errors import ConfigError
from stanchion.events import InvalidEvent, Selector, check_selector
from stanchion.observers.arguments import choice, count, delay, known_options
from stanchion.observers.binding import Mode, bind
from stanchion.observers.failures import Refused, Unroutable, undelivered
from stanchion.observers.routes import Routes, Topic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import timedelta

    from stanchion.events import Event
    from stanchion.observers.failures import Failure

    _Item = tuple[int, Event, dict[str, Any]]

__all__ = ["Mode", "PulsarCompression", "PulsarSink"]

_INSTALL: Final = "PulsarSink needs pulsar-client: pip install 'stanchion[pulsar]'"
_URL: Final = re.compile(r"pulsar(?:\+ssl)?://[^\s/@?#]+/?")
_TOPIC: Final = re.compile(
    r"(?:(?:non-)?persistent://[\w.=:\-]+/[\w.=:\-]+/)?[\w.=:\-]{1,200}", re.ASCII
)
_TOPIC_ACCEPTED: Final = (
    "a topic such as persistent://tenant/namespace/name, with {type} or {namespace} in it where "
    "wanted, or a mapping of event classes, types or globs to such topics"
)
_SLICE: Final = 20  # events between two turns of the loop: about a millisecond
_OURS: Final = frozenset(
    {
        *("service_url", "operation_timeout_seconds", "connection_timeout_ms", "logger"),
        *("tls_trust_certs_file_path", "tls_validate_hostname", "tls_allow_insecure_connection"),
        *("use_tls", "log_conf_file_path"),
    }
)


class PulsarCompression(StrEnum):
    """How the messages of one batch are packed."""

    NONE = "none"
    LZ4 = "lz4"
    ZLIB = "zlib"
    ZSTD = "zstd"
    SNAPPY = "snappy"


_COMPRESSION: Final = {
    PulsarCompression.NONE: "NONE",
    PulsarCompression.LZ4: "LZ4",
    PulsarCompression.ZLIB: "ZLib",
    PulsarCompression.ZSTD: "ZSTD",
    PulsarCompression.SNAPPY: "SNAPPY",
}


class PulsarSink:
    """Sends each event as one message, keyed by its run, with the attributes as properties.

    The properties are named as in CloudEvents' binding for Kafka: `ce_id`, `ce_type`, ..., and
    `content-type`. Messages of one run keep their order, also under a Key_Shared subscription; an
    event without a run is keyed by its id. A message counts as delivered when the broker has stored
    it. One whose confirmation was lost is sent again, with the same `ce_id`.
    """

    idempotent: ClassVar[bool] = True

    def __init__(
        self,
        url: str,
        *,
        topic: Topic = "persistent://public/default/stanchion",
        on: Selector | None = None,
        mode: Mode | str = Mode.BINARY,
        compression: PulsarCompression | str = PulsarCompression.NONE,
        timeout: timedelta | float | str = 4.0,
        batch_size: int = 500,
        batch_delay: timedelta | float | str = 0.0,
        token: str | None = None,
        trusted: str | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        """Say where to send; nothing connects before `start`.

        Args:
            url: "pulsar://host:6650", or "pulsar+ssl://host:6651": the certificate is checked.
            topic: where to; "events-{type}" makes a topic for each type, and a mapping such as
                {"llm:*": "llm", "*": "rest"} chooses by the first selector that matches.
            on: which events; by default those that have a topic.
            mode: "binary" (attributes as properties) or "structured" (the envelope is the body).
            compression: "none", "lz4", "zlib", "zstd" or "snappy".
            timeout: seconds for connecting, and for one batch.
            batch_size: the most events in one batch.
            batch_delay: seconds that a batch may wait to fill.
            token: who we are to the broker; never shown.
            trusted: the path of a file with the authorities to trust instead of the usual ones.
            options: anything else that `pulsar.Client` takes, such as `authentication`.

        Raises:
            ConfigError: an argument cannot work, or pulsar-client is not installed.
        """
        self._routes = Routes.of(topic, _TOPIC, _TOPIC_ACCEPTED)
        self.on: Selector = self._routes.selector if on is None else on
        check_selector(self.on)
        self._mode = choice(Mode, "mode", mode)
        self._compression = choice(PulsarCompression, "compression", compression)
        self._timeout = seconds(timeout, field="timeout")
        self.batch_size = count("batch_size", batch_size)
        self.batch_delay = delay("batch_delay", batch_delay)
        if not _URL.fullmatch(url):
            accepted = 'expected "pulsar://host:6650" or "pulsar+ssl://host:6651"'
            raise ConfigError(f"url: {accepted}")  # not shown: it may hold a password
        self._url, self._topic = url, topic
        self._settings = _settings(options or {}, token, trusted) | {
            # The library takes whole seconds only; our own deadline is exact.
            "operation_timeout_seconds": max(1, math.ceil(self._timeout)),
            "connection_timeout_ms": max(1, round(self._timeout * 1000)),
        }
        self._client: Any = None
        self._producers: dict[str, asyncio.Task[Any]] = {}

    def __repr__(self) -> str:
        return f"PulsarSink({self._url!r}, topic={self._topic!r}, mode={str(self._mode)!r})"

    async def start(self) -> None:
        """Connect to the topics that are known before the first event.

        Raises:
            PulsarException: the broker does not answer, or refuses us (pulsar-client's).
            TimeoutError: not within the deadline.
        """
        async with asyncio.timeout(self._timeout):
            await asyncio.gather(*(self._producer(topic) for topic in self._routes.fixed))

    async def handle_batch(self, events: Sequence[Event]) -> None:
        """Send a batch, and wait until the broker has it.

        Raises:
            Undelivered: some or all of it is not known to be stored within the deadline.
        """
        lanes, open_ends = await self._lanes(events)
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.gather(
                    *(self._send(topic, lane, open_ends) for topic, lane in lanes.items())
                )
        except TimeoutError:
            pass  # what is not confirmed by now is still among the open ends
        if open_ends:
            self._drop_lost(lanes)
            raise undelivered(list(open_ends.values()), _is_permanent)

    async def close(self) -> None:
        """Let go of the connections; what the broker has not confirmed by now is not waited for."""
        client, self._client = self._client, None
        self._producers.clear()
        if client is not None:
            # Not `shutdown`: it keeps the interpreter locked while it waits for the library's
            # thread, which may be in one of our callbacks and wait for the interpreter.
            with suppress(_library().PulsarException):  # nobody there to take leave of
                await asyncio.to_thread(client.close)

    # ------------------------------------------------------------------------------ the messages

    async def _lanes(
        self, events: Sequence[Event]
    ) -> tuple[dict[str, list[_Item]], dict[int, Failure]]:
        """Get the messages of each topic, and for every event why it is not delivered so far."""
        lanes: dict[str, list[_Item]] = {}
        open_ends: dict[int, Failure] = {}
        for number, event in enumerate(events):
            if number % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            try:
                topic, message = self._message(event)
            except (InvalidEvent, Unroutable) as error:
                open_ends[number] = event, error
            else:
                open_ends[number] = event, TimeoutError()
                lanes.setdefault(topic, []).append((number, event, message))
        return lanes, open_ends

    def _message(self, event: Event) -> tuple[str, dict[str, Any]]:
        topic = self._routes.topic(event)
        if topic is None or not _TOPIC.fullmatch(topic):
            raise Unroutable(f"no topic for {event.event_type!r}")
        message = bind(event.to_cloudevent(), self._mode)
        properties = {f"ce_{name}": text for name, text in message.attributes.items()}
        if message.content_type is not None:
            properties["content-type"] = message.content_type
        return topic, {
            "content": message.body or b"",
            "properties": properties,
            "partition_key": event.run_id or event.id,
            "event_timestamp": max(0, round(event.timestamp.timestamp() * 1000)),
        }

    async def _send(self, topic: str, lane: Sequence[_Item], open_ends: dict[int, Failure]) -> None:
        try:
            producer = await self._producer(topic)
        except _library().PulsarException as error:
            open_ends.update((number, (event, error)) for number, event, _ in lane)
            return

        answers: list[asyncio.Future[Any]] = []
        for position, (number, event, message) in enumerate(lane):
            if position % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            answer = _confirmation(producer, message)
            answer.add_done_callback(partial(_settle, open_ends, number, event))
            answers.append(answer)
        await asyncio.wait(answers)

    # ----------------------------------------------------------------------------- the producers

    async def _producer(self, topic: str) -> Any:
        creating = self._producers.get(topic)
        if creating is None:
            if self._client is None:
                self._client = _library().Client(self._url, **self._settings)
            work = asyncio.to_thread(self._create, self._client, topic)
            creating = asyncio.create_task(work, name="stanchion pulsar producer")
            self._producers[topic] = creating
        try:
            # It goes on when our time is up, and the next batch finds it further on.
            return await asyncio.shield(creating)
        except _library().PulsarException:
            if self._producers.get(topic) is creating:
                del self._producers[topic]
            raise

    def _drop_lost(self, topics: Iterable[str]) -> None:
        """Have the next batch connect anew; the library by itself waits longer and longer."""
        for topic in topics:
            creating = self._producers.get(topic)
            known = creating is not None and creating.done() and not creating.exception()
            if creating is None or not known or creating.result().is_connected():
                continue
            del self._producers[topic]
            asyncio.get_running_loop().run_in_executor(None, _end, creating.result())

    def _create(self, client: Any, topic: str) -> Any:
        library = _library()
        return client.create_producer(
            topic,
            # Within the deadline, so that a message is given up before the sink gives up on it.
            send_timeout_millis=max(1, round(self._timeout * 900)),
            compression_type=getattr(library.CompressionType, _COMPRESSION[self._compression]),
            max_pending_messages=max(1000, self.batch_size),
            batching_enabled=True,
            # One batch of the library's holds one key only, or Key_Shared could not keep an order.
            batching_type=library.BatchingType.KeyBased,
            batching_max_publish_delay_ms=5,
        )


def _confirmation(producer: Any, message: dict[str, Any]) -> asyncio.Future[Any]:
    """Send a message, and get a future of the broker's answer.

    `pulsar.asyncio` would do the same, but its callbacks raise in the library's own thread once
    the event loop is closed, and that ends the process.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def settle(result: object) -> None:
        if not answer.done():
            answer.set_result(result)

    def answered(result: object, _: object) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            loop.call_soon_threadsafe(settle, result)

    producer.send_async(callback=answered, **message)
    return answer


def _settle(
    open_ends: dict[int, Failure], number: int, event: Event, answer: asyncio.Future[Any]
) -> None:
    if answer.result() == _library().Result.Ok:
        open_ends.pop(number, None)
    else:
        open_ends[number] = event, Refused(answer.result().name)


def _end(producer: Any) -> None:
    with suppress(_library().PulsarException):  # it is cut off: there is nobody to take leave of
        producer.close()


def _library() -> Any:
    try:
        import pulsar  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise ConfigError(_INSTALL) from None
    return pulsar


def _settings(
    options: Mapping[str, object], token: str | None, trusted: str | None
) -> dict[str, Any]:
    library = _library()
    settings: dict[str, Any] = known_options(options, library.Client, _OURS)
    if token is not None:
        if "authentication" in settings:
            raise ConfigError("token and options['authentication']: give one of the two")
        settings["authentication"] = library.AuthenticationToken(token)
    if trusted is not None:
        if not os.access(trusted, os.R_OK):
            raise ConfigError.of("trusted", trusted, "expected a file that can be read")
        settings["tls_trust_certs_file_path"] = trusted
    return settings | {
        "tls_validate_hostname": True,
        # Its own logs go to standard output, or call Python from its threads; what matters to us
        # comes as an error.
        "logger": library.FileLogger(library.LoggerLevel.Error, os.devnull),
    }


def _is_permanent(error: BaseException) -> bool:
    return isinstance(error, Refused) and error.answer in {"MessageTooBig", "InvalidTopicName"}
