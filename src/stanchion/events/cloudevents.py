"""CloudEvents 1.0 in JSON: reading a document, and the specification's rules on attributes."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast
from urllib.parse import quote

from stanchion.errors import StanchionError, shown
from stanchion.events.jsonvalue import DEEPEST, NotJson, json_copy

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC_VERSION: Final = "1.0"
JSON_TYPE: Final = "application/json"
# More than a field may have, so that what goes into a document comes out of it.
DEEPEST_DOCUMENT: Final = DEEPEST + 20
PAYLOAD: Final = frozenset({"data", "data_base64"})

_REQUIRED: Final = ("specversion", "id", "source", "type")
_OBJECT: Final = "one CloudEvents 1.0 JSON object, as a dict, str or UTF-8 bytes"
_INT32: Final = 2**31
# Names are cut where they go into an attribute; the event's data has them whole.
_SEGMENT: Final = 128

_NAME: Final = re.compile(r"[a-z0-9]+")
# Control characters, surrogates, and the noncharacters: one block, and the last two of each plane.
_FORBIDDEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(last)}{chr(last + 1)}" for last in range(0xFFFE, 0x110000, 0x10000))
    + "]"
)
_URI_REFERENCE: Final = re.compile(r"(?:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})+")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:.")
_WORD: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_MEDIA_TYPE: Final = re.compile(
    rf"({_WORD}/{_WORD})(?:\s*;\s*{_WORD}=(?:{_WORD}|\"(?:[^\"\\]|\\.)*\"))*"
)
_TIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?"
    r"(?:[Zz]|([+-])([01]\d|2[0-3]):([0-5]\d))",
    re.ASCII,
)
_LEAP: Final = 60


class InvalidEvent(StanchionError, ValueError):
    """A document that is no CloudEvent 1.0, or an event that cannot be written as one.

    `attribute` names the part that is wrong (`"document"`: all of it, `"data.tokens"`: a field);
    the text names it too, with its value and what is accepted.
    """

    def __init__(self, attribute: str, problem: str, accepted: str) -> None:
        super().__init__(attribute, problem, accepted)
        self.attribute = attribute
        self.problem = problem
        self.accepted = accepted

    def __str__(self) -> str:
        return f"{self.attribute} {self.problem}: expected {self.accepted}"


def parse(document: object) -> dict[str, Any]:
    """Get a checked copy of a CloudEvents document, which is a dict, str or bytes.

    Raises:
        InvalidEvent: it breaks a rule of CloudEvents 1.0 or of its JSON format.
    """
    given = _load(document) if isinstance(document, str | bytes | bytearray) else document
    if not isinstance(given, dict):
        raise InvalidEvent("document", f"is {described(given)}", _OBJECT)
    try:
        copied = cast("dict[str, Any]", json_copy(cast("object", given), DEEPEST_DOCUMENT))
    except NotJson as error:
        name = str(error.path[0]) if error.path else "document"
        raise InvalidEvent(name, f"is not JSON ({error})", "JSON") from None
    for name in _REQUIRED:
        if copied.get(name) is None:
            raise InvalidEvent(name, "is missing", _RULES[name][1])
    for name, value in copied.items():
        if name not in PAYLOAD:
            _check_attribute(name, value)
    _check_payload(copied)
    return copied


def object_data(document: dict[str, Any]) -> dict[str, Any]:
    """Get the payload of a parsed document as the JSON object that a known type needs; {}: none.

    Raises:
        InvalidEvent: the payload is of another media type, or another kind of JSON.
    """
    content: str | None = document.get("datacontenttype")
    if content is not None and not _is_json(content):
        raise InvalidEvent("datacontenttype", f"is {described(content)}", _JSON_ONLY)
    data: object = document.get("data", {})
    encoded: str | None = document.get("data_base64")
    if encoded is not None:
        data = _load(base64.b64decode(encoded), "data_base64")
    if not isinstance(data, dict):
        raise InvalidEvent("data", f"is {described(data)}", "a JSON object with the event's fields")
    return cast("dict[str, Any]", data)


def parse_time(text: str) -> datetime:
    """Get the moment in UTC, cut to microseconds; a leap second is the last moment before it.

    Raises:
        InvalidEvent: not a time of RFC 3339, or outside the years 1 to 9999.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        _refuse("time", text)
    year, month, day, hour, minute, second = (int(found[group]) for group in range(1, 7))
    micros = int((found[7] or "")[:6].ljust(6, "0"))
    if second == _LEAP:
        second, micros = _LEAP - 1, 999_999
    ahead = timedelta(hours=int(found[9] or 0), minutes=int(found[10] or 0))
    zone = timezone(-ahead if found[8] == "-" else ahead)
    try:
        return datetime(year, month, day, hour, minute, second, micros, zone).astimezone(UTC)
    except (ValueError, OverflowError):
        _refuse("time", text)


def write_time(moment: datetime) -> str:
    """Get an RFC 3339 time with microseconds for a datetime in UTC."""
    return moment.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def path(prefix: str, name: str | None) -> str:
    """Get a URI path that ends in `name`, percent-encoded and cut to 128 characters."""
    return prefix if name is None else f"{prefix}/{quote(name[:_SEGMENT], safe='')}"


def payload(document: dict[str, Any]) -> Any:
    """Get the payload of a parsed document: a JSON value, bytes, or None where there is none."""
    encoded: str | None = document.get("data_base64")
    return document.get("data") if encoded is None else base64.b64decode(encoded)


def described(value: object) -> str:
    """Get a short rendering of a value of any size and shape for an error text."""
    if isinstance(value, dict | list | tuple):
        return f"a {type(cast('object', value)).__name__}"
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a very large integer"
    return shown(value)


def is_text(value: object) -> bool:
    """Get whether `value` is what CloudEvents calls a String, and not empty."""
    return isinstance(value, str) and bool(value) and _FORBIDDEN.search(value) is None


def _load(text: str | bytes | bytearray, name: str = "document") -> object:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidEvent(name, "is nested too deeply", _OBJECT) from None
    except ValueError as error:
        raise InvalidEvent(name, f"is not JSON ({error})", _OBJECT) from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _is_uri_reference(value: Any) -> bool:
    return isinstance(value, str) and _URI_REFERENCE.fullmatch(value) is not None


def _is_uri(value: Any) -> bool:
    return _is_uri_reference(value) and _SCHEME.match(value) is not None


def _is_media_type(value: Any) -> bool:
    return isinstance(value, str) and _MEDIA_TYPE.fullmatch(value) is not None


def _is_json(content: str) -> bool:
    found = _MEDIA_TYPE.fullmatch(content)
    return found is not None and found[1].lower().endswith(("/json", "+json"))


def _is_time(value: Any) -> bool:
    if isinstance(value, str):
        parse_time(value)
        return True
    return False


def _is_extension(value: Any) -> bool:
    if isinstance(value, str):
        return not value or is_text(value)
    if isinstance(value, int):
        return -_INT32 <= value < _INT32
    return False


STRING: Final = "a non-empty string without control characters, noncharacters or lone surrogates"
_JSON_ONLY: Final = "application/json, or a type that ends in +json, as the event's type is known"
_RULES: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "specversion": (lambda value: value == SPEC_VERSION, f'"{SPEC_VERSION}"'),
    "id": (is_text, STRING),
    "source": (_is_uri_reference, "a non-empty URI reference (RFC 3986)"),
    "type": (is_text, STRING),
    "datacontenttype": (_is_media_type, "a media type such as application/json"),
    "dataschema": (_is_uri, "an absolute URI (RFC 3986)"),
    "subject": (is_text, STRING),
    "time": (_is_time, "a time of RFC 3339 such as 2026-01-31T12:00:00Z, years 0001 to 9999"),
}
_EXTENSION: Final = (
    _is_extension,
    "a boolean, a 32-bit integer, or a string without control characters and the like",
)


def _check_attribute(name: str, value: Any) -> None:
    if _NAME.fullmatch(name) is None:
        raise InvalidEvent(
            described(name), "is no attribute name", "lower-case letters a-z and digits 0-9"
        )
    # In JSON, null is an attribute that is not set.
    if value is not None and not _RULES.get(name, _EXTENSION)[0](value):
        _refuse(name, value)


def _refuse(name: str, value: object) -> NoReturn:
    raise InvalidEvent(name, f"is {described(value)}", _RULES.get(name, _EXTENSION)[1])


def _check_payload(document: dict[str, Any]) -> None:
    encoded = document.get("data_base64")
    if encoded is None:
        return
    if "data" in document:
        raise InvalidEvent("data_base64", "stands beside data", "one of the two")
    if not _is_base64(encoded):
        raise InvalidEvent("data_base64", f"is {described(encoded)}", "base64 text (RFC 4648)")


def _is_base64(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        base64.b64decode(value, validate=True)
    except ValueError:
        return False
    return True
