"""The kinds of values that events share: ids, moments in UTC, and JSON."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from stanchion.events import cloudevents
from stanchion.events.jsonvalue import json_copy


def _utc(moment: datetime) -> datetime:
    if moment.utcoffset() is None:
        raise PydanticCustomError(
            "naive_time",
            "Input should be a datetime with a time zone, such as datetime.now(UTC); "
            "a naive local time gets one from when.astimezone()",
        )
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError(
            "time_range", "Input should be between the years 1 and 9999 in UTC"
        ) from None


def _id(value: str) -> str:
    if not cloudevents.is_text(value):
        raise PydanticCustomError("event_id", "Input should be " + cloudevents.STRING)
    return value


def now() -> datetime:
    """Get this moment in UTC."""
    return datetime.now(UTC)


def no_members() -> dict[str, Any]:
    """Get a new empty JSON object."""
    return {}


EventId = Annotated[str, AfterValidator(_id)]
UtcTime = Annotated[datetime, AfterValidator(_utc)]
JsonValue = Annotated[Any, AfterValidator(json_copy)]
JsonObject = Annotated[dict[str, Any], AfterValidator(json_copy)]
