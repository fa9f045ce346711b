"""A producer for Kafka: how to reach the brokers, whether they drop duplicates, and its end."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from stanchion.errors import ConfigError, StanchionError
from stanchion.observers.arguments import known_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_log: Final = logging.getLogger(__name__)
_INSTALL: Final = "KafkaSink needs aiokafka: pip install 'stanchion[kafka]'"
_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
# What the sink decides, or what has no meaning for it.
_OURS: Final = frozenset(
    {
        *("bootstrap_servers", "acks", "compression_type", "request_timeout_ms", "loop"),
        *("enable_idempotence", "transactional_id", "key_serializer", "value_serializer"),
        *("security_protocol", "ssl_context", "sasl_plain_username", "sasl_plain_password"),
        *("transaction_timeout_ms", "api_version"),
    }
)


class Idempotence(StrEnum):
    """Whether the brokers are asked to drop what the client library sends twice."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Compression(StrEnum):
    """How the records of one request are packed; all but gzip need a codec beside aiokafka."""

    NONE = "none"
    GZIP = "gzip"
    SNAPPY = "snappy"
    LZ4 = "lz4"
    ZSTD = "zstd"


class Brokers:
    """Keeps one producer connected, and replaces it where it cannot go on."""

    def __init__(self, settings: Mapping[str, Any], idempotence: Idempotence) -> None:
        self._settings = dict(settings)
        self._idempotence = idempotence
        #: Whether the brokers drop what is repeated; None until they have been asked.
        self.drop_duplicates = False if idempotence is Idempotence.OFF else None
        self._producer: Any = None
        self._connecting = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()

    async def producer(self) -> Any:
        """Get the producer, connected.

        Raises:
            StanchionError: the brokers refuse an idempotent producer, which was demanded.
            KafkaError: no broker answers, or they refuse us (aiokafka's error).
        """
        async with self._connecting:
            if self._producer is None:
                self._producer = await self._connect()
            return self._producer

    def retire(self) -> None:
        """End the producer in the background, with what it has not sent."""
        if self._producer is not None:
            ending = asyncio.create_task(_end(self._producer), name="stanchion kafka end")
            self._producer = None
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End the producer, and wait until every connection is closed."""
        self.retire()
        if self._ending:
            await asyncio.wait(self._ending)

    async def _connect(self) -> Any:
        if self.drop_duplicates is False:
            return await self._started(idempotent=False)
        errors = library().errors
        refusals = (
            errors.UnknownError,
            errors.UnsupportedVersionError,
            errors.IncompatibleBrokerVersion,
            errors.ClusterAuthorizationFailedError,
        )
        try:
            producer = await self._started(idempotent=True)
        except refusals as error:
            kind = type(error).__name__
            if self._idempotence is Idempotence.ON:
                text = f'idempotence="on", but the brokers refuse idempotent producers: {kind}'
                raise StanchionError(text) from error
            _log.info("the brokers refuse idempotent producers (%s): this one is not", kind)
            self.drop_duplicates = False
            return await self._started(idempotent=False)
        self.drop_duplicates = True
        return producer

    async def _started(self, *, idempotent: bool) -> Any:
        producer = library().AIOKafkaProducer(**self._settings, enable_idempotence=idempotent)
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer


async def _end(producer: Any) -> None:
    """Stop a producer without the wait for what it cannot deliver.

    aiokafka offers only `stop`, which waits for every record, and with idempotence that is for
    ever when no broker is there.
    """
    with suppress(library().errors.KafkaError):
        await producer._sender.close()  # noqa: SLF001 - no public way, see above
    producer._message_accumulator._batches.clear()  # noqa: SLF001 - no public way, see above
    await producer.stop()


def library() -> Any:
    """Get aiokafka, which has no type information.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import aiokafka  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise ConfigError(_INSTALL) from None
    return aiokafka


def is_permanent(error: BaseException) -> bool:
    """Get whether the brokers will never take that record."""
    errors = library().errors
    refused = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
    return isinstance(error, (*refused, errors.InvalidTopicError))


# ------------------------------------------------------------------------------- the arguments


def servers(given: str | Sequence[str]) -> list[str]:
    """Get the addresses to begin with.

    Raises:
        ConfigError: none, or one that is no "host:port".
    """
    found = given.split(",") if isinstance(given, str) else list(given)
    found = [str(server).strip() for server in found]
    if not found or not all(re.fullmatch(r"\S+:\d+", server) for server in found):
        raise ConfigError.of("bootstrap_servers", given, 'expected "host:port", or several of them')
    return found


def checked(options: Mapping[str, object]) -> dict[str, object]:
    """Get the options that go to aiokafka as they are.

    Raises:
        ConfigError: it does not know one of them, or the sink has a word of its own for it.
    """
    return known_options(options, library().AIOKafkaProducer, _OURS)


def codec(compression: Compression) -> str | None:
    """Get aiokafka's word for a compression.

    Raises:
        ConfigError: what it takes is not installed.
    """
    if compression is Compression.NONE:
        return None
    if not getattr(library().codec, f"has_{compression}")():
        remedy = f"its codec is not installed: pip install 'aiokafka[{compression}]'"
        raise ConfigError.of("compression", str(compression), remedy)
    return str(compression)


def security(
    *, tls: bool | str | ssl.SSLContext, mechanism: str, username: str | None, password: str | None
) -> dict[str, object]:
    """Get aiokafka's settings for TLS and SASL.

    Raises:
        ConfigError: the authorities cannot be read, or half of a login is missing.
    """
    if (username is None) != (password is None):
        raise ConfigError("sasl_username and sasl_password: give both, or none")
    context = _context(tls)
    transport = "PLAINTEXT" if context is None else "SSL"
    if username is None:
        return {"security_protocol": transport, "ssl_context": context}
    if mechanism not in _MECHANISMS:
        raise ConfigError.of("sasl_mechanism", mechanism, f"expected one of {_MECHANISMS}")
    return {
        "security_protocol": f"SASL_{transport}",
        "ssl_context": context,
        "sasl_mechanism": mechanism,
        "sasl_plain_username": username,
        "sasl_plain_password": password,
    }


def _context(tls: bool | str | ssl.SSLContext) -> ssl.SSLContext | None:  # noqa: FBT001 - as declared
    if isinstance(tls, ssl.SSLContext):
        return tls
    if not isinstance(tls, str):
        return ssl.create_default_context() if tls else None
    try:
        return ssl.create_default_context(cafile=tls)
    except OSError as error:  # an SSLError too
        accepted = f"expected a file with certificates ({error})"
        raise ConfigError.of("tls", tls, accepted) from None
