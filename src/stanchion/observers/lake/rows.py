"""Events as rows of a fixed schema, and rows as Parquet files with a place in the lake."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from stanchion.errors import ConfigError
from stanchion.events import InvalidEvent, cloudevents

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from stanchion.events import Event
    from stanchion.observers.failures import Failure

INSTALL: Final = "the data lake needs obstore and arro3: pip install 'stanchion[lake]'"
SUFFIX: Final = ".parquet"
# Written into every file; a column more or less would be another version.
_SCHEMA_VERSION: Final = "1"
_COMPRESSION: Final = "zstd(3)"
_SEGMENT: Final = 200  # characters of a directory's name; a file system takes 255 bytes
_TEXT, _TIME = "text", "time"
_COLUMNS: Final = (
    # name, kind, whether every row has it
    ("id", _TEXT, True),
    ("source", _TEXT, True),
    ("specversion", _TEXT, True),
    ("type", _TEXT, True),
    ("time", _TIME, True),
    ("subject", _TEXT, False),
    ("datacontenttype", _TEXT, False),
    ("dataschema", _TEXT, False),
    ("pipeline", _TEXT, False),
    ("run_id", _TEXT, False),
    ("node", _TEXT, False),
    ("tenant", _TEXT, False),
    ("extensions", _TEXT, False),
    ("data", _TEXT, False),
    ("data_base64", _TEXT, False),
)
_ATTRIBUTES: Final = frozenset(
    {*("id", "source", "specversion", "type", "time"), *cloudevents.PAYLOAD}
    | {"subject", "datacontenttype", "dataschema"}
)

COLUMNS: Final = [name for name, _, _ in _COLUMNS]

Row = tuple[str | int | None, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """One file to be stored, and the events that are in it."""

    path: str
    body: bytes
    events: tuple[Event, ...]


def partition(events: Sequence[Event], file_size: int) -> tuple[list[Part], list[Failure]]:
    """Get the files for some events, and the events that cannot be written.

    Files are named after their rows: the same events make the same files. One holds about
    `file_size` bytes of text at most, before it is packed.
    """
    placed: dict[str, dict[tuple[str, str], tuple[Row, Event, int]]] = {}
    again: dict[tuple[str, str], list[Event]] = {}
    failures: list[Failure] = []
    for event in events:
        try:
            document = event.to_cloudevent()
        except InvalidEvent as error:
            failures.append((event, error))
            continue
        identity = str(document["source"]), str(document["id"])
        again.setdefault(identity, []).append(event)
        row, size = _row(event, document)
        placed.setdefault(_directory(event), {})[identity] = row, event, size
    parts: list[Part] = []
    for directory, rows in placed.items():
        ordered = sorted(rows.items(), key=lambda item: (item[1][1].timestamp, item[0]))
        for chunk in _chunks(ordered, file_size):
            identities = [identity for identity, _ in chunk]
            name = _name(chunk[0][1][1].timestamp, identities)
            body = parquet([batch([row for _, (row, _, _) in chunk])])
            held = tuple(event for identity in identities for event in again[identity])
            parts.append(Part(f"{directory}/{name}{SUFFIX}", body, held))
    return parts, failures


def batch(rows: Sequence[Row]) -> Any:
    """Get the rows as an Arrow record batch."""
    core = _arro3().core
    columns = zip(*rows, strict=True)
    arrays = [
        core.Array(list(values), type=core.DataType.utf8())
        if kind is _TEXT
        else core.Array(list(values), type=core.DataType.int64()).cast(_type(kind))
        for (_, kind, _), values in zip(_COLUMNS, columns, strict=True)
    ]
    return core.RecordBatch.from_arrays(arrays, schema=schema())


def schema() -> Any:
    """Get the Arrow schema that every file has."""
    core = _arro3().core
    return core.Schema(
        [core.Field(name, _type(kind), nullable=not always) for name, kind, always in _COLUMNS]
    )


def parquet(batches: Iterable[Any]) -> bytes:
    """Get a Parquet file of record batches, which are read one after the other."""
    library = _arro3()
    reader = library.core.RecordBatchReader.from_batches(schema(), batches)
    body = io.BytesIO()
    library.io.write_parquet(
        reader,
        body,
        compression=_COMPRESSION,
        key_value_metadata={"stanchion.schema": _SCHEMA_VERSION},
    )
    return body.getvalue()


def batches(body: bytes) -> Any:
    """Get an Arrow reader of the record batches of a Parquet file."""
    return _arro3().io.read_parquet(body)


def rows_of(whole: Any, numbers: Sequence[int]) -> Any:
    """Get the record batch that has only some rows of another."""
    core = _arro3().core
    return whole.take(core.Array(list(numbers), type=core.DataType.uint64()))


def digest(names: Iterable[str]) -> str:
    """Get a short name for a set of names."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _row(event: Event, document: dict[str, Any]) -> tuple[Row, int]:
    extensions = {
        name: value
        for name, value in document.items()
        if name not in _ATTRIBUTES and value is not None
    }
    moment = event.timestamp.astimezone(UTC)
    columns: dict[str, str | int | None] = {
        **{name: document.get(name) for name in _ATTRIBUTES},
        "time": _micros(moment),
        "pipeline": event.pipeline,
        "run_id": event.run_id,
        "node": event.node,
        "tenant": event.tenant,
        "extensions": _json(extensions) if extensions else None,
        "data": _json(document["data"]) if "data" in document else None,
    }
    row = tuple(columns[name] for name, _, _ in _COLUMNS)
    return row, sum(len(value) for value in row if isinstance(value, str))


def _chunks(
    rows: list[tuple[tuple[str, str], tuple[Row, Event, int]]], file_size: int
) -> Iterable[list[tuple[tuple[str, str], tuple[Row, Event, int]]]]:
    chunk: list[tuple[tuple[str, str], tuple[Row, Event, int]]] = []
    held = 0
    for item in rows:
        size = item[1][2]
        if chunk and held + size > file_size:
            yield chunk
            chunk, held = [], 0
        chunk.append(item)
        held += size
    yield chunk


def _directory(event: Event) -> str:
    kind = quote(event.event_type, safe="")
    if len(kind) > _SEGMENT:
        kind = f"{kind[: _SEGMENT - 17].rstrip('%')}~{digest([event.event_type])}"
    return f"date={event.timestamp.astimezone(UTC).date().isoformat()}/type={kind}"


def _name(first: datetime, identities: Sequence[tuple[str, str]]) -> str:
    moment = first.astimezone(UTC).isoformat(timespec="microseconds")
    stamp = "".join(sign for sign in moment.partition("+")[0] if sign.isalnum())
    return f"{stamp}Z-{digest(' '.join(identity) for identity in identities)}"


def _micros(moment: datetime) -> int:
    whole = moment.replace(microsecond=0)
    return round(whole.timestamp()) * 1_000_000 + moment.microsecond


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _type(kind: str) -> Any:
    types = _arro3().core.DataType
    return types.utf8() if kind is _TEXT else types.timestamp("us", tz="UTC")


def _arro3() -> Any:
    try:
        import arro3.core  # pyright: ignore[reportUnusedImport] - it is an attribute then
        import arro3.io  # pyright: ignore[reportUnusedImport] - as above
    except ImportError:
        raise ConfigError(INSTALL) from None
    return arro3
