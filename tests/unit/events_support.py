"""What the tests of events as CloudEvents share: values to try, documents, and the way back."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, TypeVar

from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import strategies as st

from stanchion.events import Event

T = TypeVar("T")
NOON = datetime(2026, 1, 31, 12, 0, 0, 5, tzinfo=UTC)

ZONES = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.datetimes(
    min_value=datetime(1, 1, 2),  # noqa: DTZ001 - the zone is another strategy
    max_value=datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=ZONES,
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
IDS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"]), min_size=1)

FOREIGN: dict[str, Any] = {
    "specversion": "1.0",
    "id": "A234-1234-1234",
    "source": "https://example.com/orders?x=%20#f",
    "type": "com.example.order.placed.v2",
    "subject": "order/1",
    "time": "2026-01-31T14:00:00.123456789+02:00",
    "dataschema": "https://example.com/schema.json#/Order",
    "datacontenttype": 'application/vnd.example+json; charset="utf-8"',
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "sampledrate": 30,
    "testmode": False,
    "unset": None,
    "data": {"tenant": "acme", "node": 7, "run_id": "r-1", "metadata": {"k": [1]}, "x": [None]},
}

PROMPT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "p-1",
    "source": "/agents/7",
    "type": "llm:prompt",
    "time": "2026-01-31T12:00:00Z",
    "data": {"model": "m1"},
}


def pickled(value: T) -> T:
    return pickle.loads(pickle.dumps(value))


def there_and_back(event: Event) -> Event:
    """Through text, as over a wire, and through the objects that it is made of."""
    document = event.to_cloudevent()
    text = json.dumps(document, allow_nan=False)
    read = Event.from_cloudevent(text)
    assert Event.from_cloudevent(text.encode()) == Event.from_cloudevent(document) == read
    assert read.to_cloudevent() == document
    return read


def assert_official(document: dict[str, Any]) -> None:
    """The reference implementation reads the document, and finds in it what we put there."""
    read = JSONFormat().read(None, json.dumps(document))
    assert isinstance(read, CloudEvent)
    assert read.get_id() == document["id"]
    assert read.get_type() == document["type"]
    assert read.get_source() == document["source"]
    assert read.get_subject() == document.get("subject")
    moment = read.get_time()
    assert moment is not None
    assert moment.isoformat(timespec="microseconds").replace("+00:00", "Z") == document["time"]
    assert read.get_data() == document["data"]
