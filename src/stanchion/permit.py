"""`Permit`: what an admission holds, as a value that travels between processes as text."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

from stanchion.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

_FORMAT = "stp1."
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LARGEST = 2**53 - 1
# Characters; nearly all of a long one is the event that a custom policy is to hear of again.
_LONGEST = 16 * 2**20
_MOST_HOLDS = 1000
_COLUMNS = 11
_DEFAULTS = (0, False)


class Hold(NamedTuple):
    """What one policy has taken for one admission.

    `amounts` says what `reserved` was made of: name, weight and amount of each metric. `numbers`
    are the script's own and only travel along. `expires_us` is 0 for what needs no lease. `local`
    is what a process admitted by itself during an outage; only that process can settle it. `chunk`
    numbers what was taken ahead by the process that spent some of it here, 0 where nothing was.
    `shard` is where it was taken, 0 under the namespace's own hash tag. `bounded` says that the
    policy has an index of its subjects.
    """

    policy: str
    kind: str
    subject: str
    reserved: int
    amounts: tuple[tuple[str, int, int], ...]
    numbers: tuple[int, ...]
    expires_us: int = 0
    local: bool = False
    chunk: int = 0
    shard: int = 0
    bounded: bool = False


class Permit:
    """What an admission holds, until it is settled or its leases end.

    `str(permit)` is self-contained: another process can `Permit.parse` it and settle it, with
    no policy declared there. Charges made with `charge` stay with this object and are settled by
    the `guard` that yielded it, or passed on by `settle`.
    """

    __slots__ = (
        "_admitted_us",
        "_charges",
        "_event",
        "_holds",
        "_id",
        "_lost",
        "_namespace",
        "_policies",
    )

    def __init__(
        self,
        id: str,
        namespace: str,
        holds: tuple[Hold, ...] = (),
        *,
        policies: tuple[str, ...] = (),
        event: Mapping[str, Any] | None = None,
        admitted_us: int = 0,
    ) -> None:
        self._id = id
        self._namespace = namespace
        self._holds = holds
        self._policies = policies
        self._event = event
        self._admitted_us = admitted_us
        self._charges: dict[str, int] = {}
        self._lost = False

    @property
    def id(self) -> str:
        """What names this admission in the store."""
        return self._id

    @property
    def namespace(self) -> str:
        """The namespace in which it was admitted; only a bus of the same one can settle it."""
        return self._namespace

    @property
    def holds(self) -> tuple[Hold, ...]:
        """What the built-in policies have taken."""
        return self._holds

    @property
    def policies(self) -> tuple[str, ...]:
        """The custom policies that admitted it and want to hear the outcome."""
        return self._policies

    @property
    def event(self) -> Mapping[str, Any] | None:
        """The event as a CloudEvents document, where a custom policy will need it."""
        return self._event

    @property
    def charges(self) -> Mapping[str, int]:
        """The real costs reported so far."""
        return dict(self._charges)

    @property
    def admitted_at(self) -> datetime | None:
        """When it was admitted, by the server's clock; None where the store was not asked."""
        return moment(self._admitted_us) if self._admitted_us else None

    @property
    def admitted_us(self) -> int:
        """The same in microseconds since the epoch, 0 for None."""
        return self._admitted_us

    @property
    def expires_at(self) -> datetime | None:
        """When the first lease ends unless it is renewed; None where nothing is leased."""
        ends = [hold.expires_us for hold in self._holds if hold.expires_us]
        return moment(min(ends)) if ends else None

    @property
    def leased(self) -> bool:
        """Whether anything of it ends by itself unless it is renewed in the shared store."""
        return any(hold.expires_us and not hold.local for hold in self._holds)

    @property
    def lost(self) -> bool:
        """Whether a lease is known to have ended, so that others may have taken the place."""
        return self._lost

    def mark_lost(self) -> None:
        """Note that a lease has ended; called by whoever renews them."""
        self._lost = True

    def charge(self, **costs: int) -> None:
        """Add to the real cost, by cost field, or by policy name where its cost is a number.

        Nothing is sent: the sum of all charges is settled at the end, in place of the estimate.

        Raises:
            ConfigError: no policy counts such a cost, or the amount is negative or not whole.
        """
        self.check_costs(costs)
        for name, amount in costs.items():
            self._charges[name] = self._charges.get(name, 0) + amount

    def check_costs(self, costs: Mapping[str, int]) -> None:
        """Check that policies count these costs; raises ConfigError as `charge` does."""
        known = {name for hold in self._holds for name, _, _ in hold.amounts}
        for name, amount in costs.items():
            if name not in known and not self._policies:
                raise ConfigError.of(
                    "cost", name, f"this permit counts {sorted(known) or 'nothing'}"
                )
            if type(amount) is not int or not 0 <= amount <= _LARGEST:
                raise ConfigError.of(f"cost {name}", amount, "expected a whole number from 0")

    def __str__(self) -> str:
        document = {
            "i": self._id,
            "n": self._namespace,
            "h": [
                (
                    h.policy,
                    h.kind,
                    h.subject,
                    h.reserved,
                    h.amounts,
                    h.numbers,
                    h.expires_us,
                    h.local,
                    h.chunk,
                    h.shard,
                    # Nobody else's text is any the longer for it.
                    *((True,) if h.bounded else ()),
                )
                for h in self._holds
            ],
            "p": self._policies,
            "e": self._event,
            "a": self._admitted_us,
        }
        text = json.dumps(document, separators=(",", ":"))
        return _FORMAT + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Permit:
        """Get the permit that `str` wrote.

        The text is not signed: take it from nobody whom the policies are to hold back.

        Raises:
            ConfigError: it is not such a text, or not a whole one, or longer than 16 MiB.
        """
        if not isinstance(text, str) or not text.startswith(_FORMAT):  # pyright: ignore[reportUnnecessaryIsInstance]
            _refuse(text)
        if len(text) > _LONGEST:
            raise ConfigError.of("permit", text, f"expected at most {_LONGEST} characters")
        body = text.removeprefix(_FORMAT)
        try:
            data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
            document = cast("dict[str, Any]", json.loads(data))
            return cls(
                _text(document["i"]),
                _text(document["n"]),
                tuple(_hold(row) for row in _holds(document["h"])),
                policies=tuple(_text(name) for name in _rows(document["p"])),
                event=_event(document["e"]),
                admitted_us=_whole(document["a"]),
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            _refuse(text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Permit) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        names = [hold.policy for hold in self._holds] + list(self._policies)
        return f"<Permit {self._id} of {', '.join(names) or 'no policy'}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Permit.parse, (str(self),)


def moment(us: int) -> datetime:
    """Get the UTC time that many microseconds after the epoch."""
    return _EPOCH + timedelta(microseconds=us)


def _holds(value: object) -> list[object]:
    rows = _rows(value)
    if len(rows) > _MOST_HOLDS:
        raise ValueError
    return rows


def _hold(row: object) -> Hold:
    # One that was written before there were shards, or indexes, ends sooner.
    columns = _rows(row)
    if (missing := _COLUMNS - len(columns)) in {1, 2}:
        columns = [*columns, *_DEFAULTS[-missing:]]
    policy, kind, subject, reserved, amounts, numbers, expires_us, *rest = columns
    local, chunk, shard, bounded = rest
    if type(bounded) is not bool:
        raise TypeError
    return Hold(
        _text(policy),
        _text(kind),
        _text(subject),
        _whole(reserved),
        tuple(_amount(amount) for amount in _rows(amounts)),
        tuple(_whole(number, -_LARGEST) for number in _rows(numbers)),
        _whole(expires_us),
        local is True,
        _whole(chunk),
        _whole(shard),
        bounded,
    )


def _amount(row: object) -> tuple[str, int, int]:
    name, weight, amount = _rows(row)
    return _text(name), _whole(weight), _whole(amount)


def _rows(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError
    return cast("list[object]", value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _whole(value: object, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= _LARGEST:
        raise ValueError
    return value


def _event(value: object) -> Mapping[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise TypeError
    return cast("dict[str, Any] | None", value)


def _refuse(text: object) -> NoReturn:
    raise ConfigError.of("permit", text, "expected the text that str(permit) gave, whole")
