"""Secrets in texts: keys and tokens of some hundred services, found offline by Kingfisher."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from stanchion.errors import ConfigError
from stanchion.policies.content.findings import Finding, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

Confidence = Literal["low", "medium", "high"]


class Credentials:
    """Finds secrets, those in Base64 included.

    `confidence` is that of the rules to use: "low" for all of them, "medium" or "high".
    """

    def __init__(self, confidence: Confidence) -> None:
        """Load the rules; raises ConfigError where the extra `content` is not installed."""
        self._scanner = _scanner(confidence)

    def find(self, text: str) -> Iterator[Finding]:
        """Get every secret."""
        data = text.encode()
        found = self._scanner.scan(data)
        # What is not visible is a part of a secret, such as its id: nothing by itself.
        if not any(one.visible for one in found):
            return
        for one in found:
            label = f"secret:{one.rule_id.rpartition('.')[2]}"
            place = one.location
            start, end = place["start_offset"], place["end_offset"]
            if not one.is_base64_encoded and one.secret.encode() not in data[start:end]:
                # It was found in another decoding of the text, so its place is not known.
                yield Finding(Kind.SECRET, label, 0, len(text))
                continue
            if not text.isascii():
                start, end = (len(data[:at].decode("utf-8", "ignore")) for at in (start, end))
            yield Finding(Kind.SECRET, label, start, end)


@cache
def _scanner(confidence: Confidence) -> Any:
    """Get the scanner of this process: loading the rules takes a third of a second, or three."""
    try:
        from kingfisher_sdk import Rules, Scanner
    except ImportError:
        raise ConfigError(
            'finding secrets needs kingfisher-secret-scanner: pip install "stanchion[content]"'
        ) from None
    return Scanner(Rules(confidence=confidence))
