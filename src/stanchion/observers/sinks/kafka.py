"""Events to Apache Kafka, and to whatever speaks its protocol."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from stanchion.durations import seconds
from stanchion.events import InvalidEvent, Selector, check_selector
from stanchion.observers.arguments import choice, count, delay
from stanchion.observers.binding import Mode, bind
from stanchion.observers.failures import Unroutable, undelivered
from stanchion.observers.kafka_brokers import (
    Brokers,
    Compression,
    Idempotence,
    checked,
    codec,
    is_permanent,
    library,
    security,
    servers,
)
from stanchion.observers.routes import Routes, Topic

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from stanchion.events import Event
    from stanchion.observers.failures import Failure

    Sent = asyncio.Future[object]

__all__ = ["Compression", "Idempotence", "KafkaSink", "Mode"]

_TOPIC: Final = re.compile(r"(?!\.\.?$)[A-Za-z0-9._\-]{1,249}")
_TOPIC_ACCEPTED: Final = (
    "a topic of letters, digits, '.', '_' and '-', at most 249 of them, with {type} or {namespace} "
    "in it where wanted, or a mapping of event classes, types or globs to such topics"
)
_SLICE: Final = 20  # events between two turns of the loop: about a millisecond
_KEPT: Final = 10_000  # records whose fate was not known in time and nobody has asked for since


@dataclass(frozen=True, slots=True)
class _Record:
    event: Event
    identity: tuple[str, str]
    topic: str
    key: bytes
    value: bytes | None
    headers: list[tuple[str, bytes]]
    timestamp_ms: int


class KafkaSink:
    """Writes each event as one record, keyed by its run, as a CloudEvent in binary mode.

    Events of one run go to one partition, in order; an event without a run is keyed by its id. A
    record counts as delivered when all in-sync replicas have it. One whose fate is unknown when
    the deadline passes stays with the producer: handed in again, it is waited for and not written
    twice. After a crash, or where the producer had to be replaced, a record may come twice, with
    the same `ce_id`.
    """

    idempotent: ClassVar[bool] = True

    def __init__(
        self,
        bootstrap_servers: str | Sequence[str],
        *,
        topic: Topic = "stanchion.events",
        on: Selector | None = None,
        mode: Mode | str = Mode.BINARY,
        idempotence: Idempotence | str = Idempotence.AUTO,
        compression: Compression | str = Compression.GZIP,
        timeout: timedelta | float | str = 4.0,
        batch_size: int = 500,
        batch_delay: timedelta | float | str = 0.0,
        tls: bool | str | ssl.SSLContext = False,
        sasl_mechanism: str = "PLAIN",
        sasl_username: str | None = None,
        sasl_password: str | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        """Say where to write; nothing connects before `start`.

        Args:
            bootstrap_servers: "host:port", or several of them.
            topic: where to; "events.{type}" makes a topic for each type, and a mapping such as
                {"llm:*": "llm", "*": "rest"} chooses by the first selector that matches.
            on: which events; by default those that have a topic.
            mode: "binary" (attributes as headers) or "structured" (the envelope is the value).
            idempotence: "auto" asks the brokers when connecting for the first time, and does
                without where they do not know it or do not allow it; "on" insists.
            compression: "none", "gzip", "snappy", "lz4" or "zstd".
            timeout: seconds for connecting, and for one batch.
            batch_size: the most events in one batch.
            batch_delay: seconds that a batch may wait to fill.
            tls: True for the system's authorities, the path of a file with others, or a context.
            sasl_mechanism: "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"; used with a username.
            sasl_username: who we are to the brokers.
            sasl_password: never shown.
            options: anything else that `AIOKafkaProducer` takes, such as `client_id`.

        Raises:
            ConfigError: an argument cannot work, or aiokafka or a codec is not installed.
        """
        self._routes = Routes.of(topic, _TOPIC, _TOPIC_ACCEPTED)
        self.on: Selector = self._routes.selector if on is None else on
        check_selector(self.on)
        self._mode = choice(Mode, "mode", mode)
        self._timeout = seconds(timeout, field="timeout")
        self.batch_size = count("batch_size", batch_size)
        self.batch_delay = delay("batch_delay", batch_delay)
        self._shown = f"{servers(bootstrap_servers)!r}, topic={topic!r}, mode={str(self._mode)!r}"
        settings = {
            "retry_backoff_ms": 250,  # aiokafka logs each attempt, and 100 ms makes many of them
            **checked(options or {}),
            "bootstrap_servers": servers(bootstrap_servers),
            "acks": "all",
            "compression_type": codec(choice(Compression, "compression", compression)),
            # Within the deadline, so that the reason is known when it passes.
            "request_timeout_ms": max(1, round(self._timeout * 900)),
            **security(
                tls=tls, mechanism=sasl_mechanism, username=sasl_username, password=sasl_password
            ),
        }
        self._brokers = Brokers(settings, choice(Idempotence, "idempotence", idempotence))
        self._must_reconnect = False
        self._sent: dict[tuple[str, str], Sent] = {}

    def __repr__(self) -> str:
        return f"KafkaSink({self._shown})"

    @property
    def drops_duplicates(self) -> bool | None:
        """Whether the brokers drop what the client library repeats; None before the first start."""
        return self._brokers.drop_duplicates

    async def start(self) -> None:
        """Connect.

        Raises:
            StanchionError: the brokers refuse an idempotent producer, which `idempotence` demands.
            KafkaError: no broker answers, or they refuse us (aiokafka's error).
            TimeoutError: not within the deadline.
        """
        async with asyncio.timeout(self._timeout):
            await self._brokers.producer()

    async def handle_batch(self, events: Sequence[Event]) -> None:
        """Write a batch, and wait until the brokers have it.

        Raises:
            Undelivered: some or all of it is not known to be written within the deadline.
        """
        lanes, failures = await self._records(events)
        if self._must_reconnect:
            self._reset()
        try:
            async with asyncio.timeout(self._timeout):
                producer = await self._brokers.producer()
                await asyncio.gather(
                    *(self._send(producer, lane, failures) for lane in lanes.values())
                )
                if waiting := self._open(lanes):
                    await asyncio.wait(waiting)
        except TimeoutError:
            pass  # what is not known by now is a failure below
        except library().errors.KafkaError as error:
            failures.extend((record.event, error) for lane in lanes.values() for record in lane)
            raise undelivered(failures, is_permanent) from error
        failed = {id(event) for event, _ in failures}
        asked = [record for lane in lanes.values() for record in lane]
        fates = {record.identity: self._fate(record) for record in asked}
        failures.extend(
            (record.event, error)
            for record in asked
            if (error := fates[record.identity]) is not None and id(record.event) not in failed
        )
        self._forget()
        if failures:
            raise undelivered(failures, is_permanent)

    async def close(self) -> None:
        """Let go of the connections; what no broker has confirmed by now is not waited for."""
        self._reset()
        await self._brokers.close()

    def _reset(self) -> None:
        for sent in self._sent.values():
            sent.cancel()
        self._sent.clear()
        self._brokers.retire()
        self._must_reconnect = False

    # ------------------------------------------------------------------------------- the records

    async def _records(
        self, events: Sequence[Event]
    ) -> tuple[dict[str, list[_Record]], list[Failure]]:
        lanes: dict[str, list[_Record]] = {}
        failures: list[Failure] = []
        for number, event in enumerate(events):
            if number % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            try:
                record = self._record(event)
            except (InvalidEvent, Unroutable) as error:
                failures.append((event, error))
            else:
                lanes.setdefault(record.topic, []).append(record)
        return lanes, failures

    def _record(self, event: Event) -> _Record:
        topic = self._routes.topic(event)
        if topic is None or not _TOPIC.fullmatch(topic):
            raise Unroutable(f"no topic for {event.event_type!r}")
        document = event.to_cloudevent()
        identity = document["source"], document["id"]
        message = bind(document, self._mode)
        headers = [(f"ce_{name}", text.encode()) for name, text in message.attributes.items()]
        if message.content_type is not None:
            headers.append(("content-type", message.content_type.encode()))
        key = event.run_id or event.id
        moment = round(event.timestamp.timestamp() * 1000)
        return _Record(event, identity, topic, key.encode(), message.body, headers, moment)

    async def _send(self, producer: Any, lane: Sequence[_Record], failures: list[Failure]) -> None:
        """Hand the records of one topic to the producer, one after the other for their order."""
        errors = library().errors
        for number, record in enumerate(lane):
            if number % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            if record.identity in self._sent:
                continue
            try:
                sent = await producer.send(
                    record.topic,
                    key=record.key,
                    value=record.value,
                    headers=record.headers,
                    timestamp_ms=record.timestamp_ms,
                )
            except errors.MessageSizeTooLargeError as error:
                failures.append((record.event, error))
            except errors.KafkaError as error:
                # It concerns the topic or the producer, and so all that comes after.
                self._must_reconnect = True
                failures.extend((later.event, error) for later in lane[number:])
                break
            else:
                self._sent[record.identity] = sent

    def _open(self, lanes: Mapping[str, Sequence[_Record]]) -> list[Sent]:
        ids = (record.identity for lane in lanes.values() for record in lane)
        return [self._sent[known] for known in ids if known in self._sent]

    def _fate(self, record: _Record) -> BaseException | None:
        """Get why a record is not known to be written; None if it is."""
        sent = self._sent.get(record.identity)
        if sent is None or not sent.done():
            return TimeoutError()
        del self._sent[record.identity]
        if sent.cancelled():
            return TimeoutError()
        error = sent.exception()
        # A refused record leaves a gap in the numbering, after which the brokers take no more.
        self._must_reconnect |= error is not None
        return error

    def _forget(self) -> None:
        """Drop what was given up by those who sent it."""
        surplus = len(self._sent) - _KEPT
        if surplus > 0:
            done = [known for known, sent in self._sent.items() if sent.done()]
            for known in done[:surplus]:
                self._sent.pop(known).cancel()  # or asyncio complains of errors nobody has read
