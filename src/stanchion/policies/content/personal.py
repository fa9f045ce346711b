"""Personal data in texts: what looks like it, and passes the check of its own numbering."""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from stanchion.errors import ConfigError
from stanchion.policies.content.findings import Finding, Kind
from stanchion.policies.content.patterns import alone, compiled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Span = tuple[int, int]


class Personal(StrEnum):
    """The kinds of personal data that are known."""

    EMAIL = "email"
    PHONE = "phone"
    CARD = "card"
    IBAN = "iban"
    US_SSN = "us_ssn"
    IP_ADDRESS = "ip_address"


_CANDIDATES: Final = {
    Personal.EMAIL: r"[\pL\pN._%+'-]+@[\pL\pN-]+(?:\.[\pL\pN-]+)*\.\pL{2,63}",
    Personal.PHONE: r"[+(]?[0-9][0-9\s().+/\x{2010}-\x{2015}-]{5,}[0-9]",
    Personal.CARD: r"[0-9](?:[ \x{A0}-]?[0-9]){12,}",
    Personal.IBAN: r"(?i)\b[A-Z]{2}[0-9]{2}(?:[ \x{A0}]?[A-Z0-9]){11,}",
    Personal.US_SSN: r"[0-9]{3}[- ][0-9]{2}[- ][0-9]{4}",
    Personal.IP_ADDRESS: (
        r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7}"
    ),
}
_GAPS: Final = " \u00a0-"
_GROUPS: Final = 12  # that a number may be written in
_CARD: Final = range(13, 20)  # digits


class PersonalData:
    """Finds the kinds of personal data that it is told to.

    `region` is the country (two letters) whose phone numbers are known without their "+" prefix.
    """

    def __init__(self, owner: str, kinds: Sequence[Personal], region: str | None) -> None:
        """Load what it needs; raises ConfigError."""
        self._checks: list[tuple[Personal, Any, Callable[[str], Iterator[Span]]]] = []
        checks: dict[Personal, Callable[[str], Iterator[Span]]] = {
            Personal.EMAIL: _whole,
            Personal.IP_ADDRESS: _addresses,
        }
        if Personal.PHONE in kinds:
            checks[Personal.PHONE] = _phones(owner, region)
        if {Personal.CARD, Personal.IBAN, Personal.US_SSN} & set(kinds):
            checks |= _numbers()
        for kind in dict.fromkeys(kinds):
            self._checks.append((kind, compiled(owner, _CANDIDATES[kind]), checks[kind]))

    def find(self, text: str) -> Iterator[Finding]:
        """Get every candidate that passes its check."""
        for kind, expression, check in self._checks:
            for match in expression.finditer(text):
                for start, end in check(match.group()):
                    place = match.start() + start, match.start() + end
                    if alone(text, *place):
                        yield Finding(Kind.PERSONAL, kind, *place)


def _whole(candidate: str) -> Iterator[Span]:
    yield 0, len(candidate)


def _addresses(candidate: str) -> Iterator[Span]:
    try:
        ipaddress.ip_address(candidate)
    except ValueError:
        return
    yield 0, len(candidate)


def _phones(owner: str, region: str | None) -> Callable[[str], Iterator[Span]]:
    try:
        import phonenumbers
    except ImportError:
        raise _missing("phonenumbers") from None
    if region is not None and region not in phonenumbers.SUPPORTED_REGIONS:
        raise ConfigError.of(f"{owner}: phone_region", region, 'expected a country such as "US"')

    def check(candidate: str) -> Iterator[Span]:
        for match in phonenumbers.PhoneNumberMatcher(candidate, region):
            yield match.start, match.end

    return check


def _numbers() -> dict[Personal, Callable[[str], Iterator[Span]]]:
    try:
        from stdnum import iban, luhn
        from stdnum.us import ssn
    except ImportError:
        raise _missing("python-stdnum") from None

    def cards(candidate: str) -> Iterator[Span]:
        for start, end in _groups(candidate):
            digits = "".join(filter(str.isdigit, candidate[start:end]))
            if len(digits) in _CARD and digits[0] in "23456" and luhn.is_valid(digits):
                yield start, end

    def ibans(candidate: str) -> Iterator[Span]:
        # What follows it may be in capitals as well.
        spans = [(start, end) for start, end in _groups(candidate) if start == 0]
        for _, end in reversed(spans):
            if iban.is_valid(candidate[:end].replace("\u00a0", " ")):
                yield 0, end
                return

    def ssns(candidate: str) -> Iterator[Span]:
        if ssn.is_valid(candidate):
            yield 0, len(candidate)

    return {Personal.CARD: cards, Personal.IBAN: ibans, Personal.US_SSN: ssns}


def _groups(candidate: str) -> list[Span]:
    """Get every part of a candidate that begins and ends where a group does, in order."""
    edges = [0]
    for at, letter in enumerate(candidate):
        if letter in _GAPS:
            edges += at, at + 1
    edges.append(len(candidate))
    starts, ends = edges[::2], edges[1::2]
    return [
        (start, ends[last])
        for first, start in enumerate(starts)
        for last in range(first, min(first + _GROUPS, len(ends)))
    ]


def _missing(package: str) -> ConfigError:
    return ConfigError(f'personal data needs {package}: pip install "stanchion[content]"')
