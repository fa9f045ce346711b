"""Terms and regular expressions, in RE2: the time is linear in the text, whatever the pattern."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from stanchion.errors import ConfigError
from stanchion.policies.content.findings import Finding, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_MEMORY: Final = 64 << 20  # bytes that one pattern may use
_CASELESS: Final = "(?i)"


def compiled(owner: str, pattern: str) -> Any:
    """Get an expression of RE2; `owner` is what errors call its place.

    Raises:
        ConfigError: it is none that RE2 takes (which knows no look-around and no back references),
            or the extra `content` is not installed.
    """
    try:
        import re2 as untyped  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise ConfigError(
            'content policies need google-re2: pip install "stanchion[content]"'
        ) from None
    re2: Any = untyped
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    try:
        expression: Any = re2.compile(pattern, options)
    except re2.error as error:
        why: object = error.args[0] if error.args else ""
        text = why.decode("utf-8", "replace") if isinstance(why, bytes) else str(why)
        raise ConfigError.of(owner, pattern, f"no expression of RE2: {text}") from None
    if expression.fullmatch(""):
        raise ConfigError.of(owner, pattern, "it matches nothing at all, and so everywhere")
    return expression


class Patterns:
    """Finds expressions by their labels."""

    def __init__(self, owner: str, patterns: Mapping[str, str]) -> None:
        """Compile them; raises ConfigError."""
        self._patterns = [
            (label, compiled(f"{owner}[{label!r}]", pattern)) for label, pattern in patterns.items()
        ]

    def find(self, text: str) -> Iterator[Finding]:
        """Get every match."""
        for label, expression in self._patterns:
            for match in expression.finditer(text):
                if match.end() > match.start():
                    yield Finding(Kind.PATTERN, label, match.start(), match.end())


class Terms:
    """Finds words and phrases, in any case, where they stand by themselves.

    White space in a term stands for any white space in the text.
    """

    def __init__(self, owner: str, terms: Sequence[str]) -> None:
        """Compile them; raises ConfigError."""
        for index, term in enumerate(terms):
            if not term.strip():
                raise ConfigError.of(f"{owner}[{index}]", term, "expected a word or a phrase")
        # The longest first, where one is the beginning of another.
        words = sorted((term.split() for term in terms), key=len, reverse=True)
        each = (r"\s+".join(re.escape(word) for word in term) for term in words)
        self._expression = compiled(owner, f"{_CASELESS}(?:{'|'.join(each)})")

    def find(self, text: str) -> Iterator[Finding]:
        """Get every term that is not a part of a longer word."""
        for match in self._expression.finditer(text):
            if alone(text, match.start(), match.end()):
                yield Finding(Kind.TERM, "term", match.start(), match.end())


def alone(text: str, start: int, end: int) -> bool:
    """Get whether a part of a text has no letter or digit next to it."""
    before, after = text[start - 1 : start], text[end : end + 1]
    return not before.isalnum() and not after.isalnum()


def all_of(detectors: Iterable[Any], text: str) -> list[Finding]:
    """Get what all detectors find in a text."""
    return [found for detector in detectors for found in detector.find(text)]
