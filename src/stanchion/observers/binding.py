"""CloudEvents on a transport that carries headers beside a body: binary and structured mode."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from stanchion.events import cloudevents

if TYPE_CHECKING:
    from collections.abc import Mapping

_STRUCTURED: Final = "application/cloudevents+json; charset=UTF-8"
_CONTENT: Final = "datacontenttype"


class Mode(StrEnum):
    """Whether the attributes travel as headers, or the whole envelope is the body."""

    BINARY = "binary"
    STRUCTURED = "structured"


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent: attributes as text, the content type apart; no body where there is no data."""

    attributes: Mapping[str, str]
    content_type: str | None
    body: bytes | None


def bind(document: dict[str, Any], mode: Mode) -> Message:
    """Get the message for a CloudEvents document, as `to_cloudevent` gives it."""
    if mode is Mode.STRUCTURED:
        return Message({}, _STRUCTURED, _json(document))
    attributes = {
        name: _text(value)
        for name, value in document.items()
        if name not in cloudevents.PAYLOAD and name != _CONTENT and value is not None
    }
    return Message(attributes, document.get(_CONTENT), _body(document))


def _body(document: dict[str, Any]) -> bytes | None:
    data = cloudevents.payload(document)
    if isinstance(data, bytes):
        return data
    if "data" not in document:
        return None
    if isinstance(data, str) and not _is_json(document.get(_CONTENT)):
        return data.encode()
    return _json(data)


def _is_json(content_type: str | None) -> bool:
    if content_type is None:
        return True
    media = content_type.partition(";")[0].strip().lower()
    return media.endswith(("/json", "+json"))


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _text(value: object) -> str:
    # The canonical form of CloudEvents' booleans and integers.
    return str(value).lower() if isinstance(value, bool) else str(value)
