"""Events, policies and looks into a store that the tests of buses share."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, cast

from stanchion import (
    CircuitBreaker,
    Concurrency,
    Event,
    EventBus,
    Outcome,
    Quota,
    RateLimit,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from stanchion.chain import AnyPolicy
    from tests.servers import RealServer


# A server that makes a hash's table larger does so bit by bit, while it is looked at, and the order
# of the fields changes meanwhile; so it is looked at until that is done.
_DUMPED = """
for _ = 1, redis.call('TYPE', KEYS[1]).ok == 'hash' and 100 or 0 do
  redis.call('HGET', KEYS[1], 'at')
end
return redis.call('DUMP', KEYS[1])
"""


class Call(Event, type="busses:call"):
    """What most tests ask about."""

    tenant: str | None = None
    model: str = "m1"
    tokens: int = 1


class SpecialCall(Call, type="busses:special"):
    """A call that selectors of calls are about as well."""

    urgent: bool = False


class Other(Event, type="busses_other:thing"):
    """Something that no policy of calls is about."""

    tenant: str | None = None


class Wave(Event, type="busses:wave"):
    """Without the fields that calls have."""


def rate(name: str = "calls", /, **fields: Any) -> RateLimit:
    """Make a rate limit of 5 calls a minute, with what else is given."""
    return RateLimit(**{"name": name, "on": Call, "limit": 5, "per": "1m", **fields})


def quota(name: str = "tokens", /, **fields: Any) -> Quota:
    """Make a quota of 1000 tokens a day, with what else is given."""
    given = {"name": name, "on": Call, "limit": 1000, "per": "1d", "cost": "tokens"}
    return Quota(**{**given, **fields})


def slots(name: str = "slots", /, **fields: Any) -> Concurrency:
    """Make a cap of 2 at once, with what else is given."""
    return Concurrency(**{"name": name, "on": Call, "limit": 2, "lease": "30s", **fields})


def breaker(name: str = "provider", /, **fields: Any) -> CircuitBreaker:
    """Make a breaker that two failures in a row trip, with what else is given."""
    given: dict[str, Any] = {"name": name, "on": Call, "open_for": "30s", "lease": "30s"}
    if not fields.keys() & {"failure_rate", "slow_call", "consecutive_failures"}:
        given["consecutive_failures"] = 2
    return CircuitBreaker(**{**given, **fields})


def every_kind() -> tuple[AnyPolicy, ...]:
    """Make one policy of every kind that the scripts know."""
    return (
        rate("gcra"),
        rate("fixed", algorithm="fixed_window"),
        rate("sliding", algorithm="sliding_window"),
        rate("log", algorithm="sliding_log"),
        quota("fixed-quota"),
        quota("calendar-quota", per="month", timezone="Europe/Berlin"),
        quota("rolling-quota", per="1h", rolling=True),
        slots("slots"),
        breaker("breaker"),
    )


class Custom:
    """A custom policy that does as it is told, and remembers what it was asked and told."""

    def __init__(
        self,
        name: str = "custom",
        *,
        on: Any = Call,
        priority: int = 100,
        answer: object = True,
        on_veto: Any = None,
    ) -> None:
        self.name = name
        self.on = on
        self.priority = priority
        self.answer = answer
        self.asked: list[Event] = []
        if on_veto is not None:
            self.on_veto = on_veto

    async def evaluate(self, event: Event) -> Verdict:
        self.asked.append(event)
        answer = self.answer
        if callable(answer):
            answer = await cast("Callable[[Event], Awaitable[Any]]", answer)(event)
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, bool):
            return Verdict(self.name, answer, "ok" if answer else "not today")
        return cast("Verdict", answer)


class SettlingCustom(Custom):
    """A custom policy that also wants to hear how it ended."""

    def __init__(self, name: str = "custom", **options: Any) -> None:
        super().__init__(name, **options)
        self.settled: list[tuple[Event, Outcome, Mapping[str, int]]] = []
        self.on_settle: Any = None

    async def settle(self, event: Event, outcome: Outcome, costs: Mapping[str, int]) -> None:
        self.settled.append((event, outcome, costs))
        if self.on_settle is not None:
            await self.on_settle()

    @property
    def outcomes(self) -> list[Outcome]:
        return [outcome for _, outcome, _ in self.settled]


class Buses:
    """Opens buses on one store; all are closed with the test."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url = url
        self._stack = stack

    async def __call__(self, *policies: AnyPolicy, **options: Any) -> EventBus:
        """Open a bus; on `memory://` each has a store of its own.

        It asks every time, so that what one bus does another sees at once.
        """
        options.setdefault("cache_denials", False)
        bus = EventBus.from_url(self.url, policies=policies, **options)
        await self._stack.enter_async_context(bus)
        # What it does by itself is done, before anybody counts or looks.
        await bus._parts.epochs.looked()
        return bus


# ---- looking into a store, whichever it is


async def command(bus: EventBus, *words: str) -> Any:
    """Run a command on the bus's own store."""
    return await cast("Any", bus)._store.execute(*words)


async def stored_bytes(bus: EventBus, pattern: str = "stanchion:{*") -> dict[str, bytes]:
    """Get every byte that a bus's store holds of policies, by key."""
    names = sorted([key.decode() for key in await command(bus, "KEYS", pattern)])
    # Which life of the state this is, is found out in the background, whatever is decided.
    kept = [name for name in names if not name.endswith("}:epoch")]
    return {name: await command(bus, "EVAL", _DUMPED, "1", name) for name in kept}


Snapshot = dict[str, tuple[bytes, int]]


async def snapshot(bus: EventBus, pattern: str = "*") -> Snapshot:
    """Get every key's value, byte for byte, and the moment at which it expires.

    Of a hash its fields: in which order a server has them may change as it is read. Left out is
    what a bus writes as it opens.
    """
    taken: Snapshot = {}
    for key in sorted(cast("list[bytes]", await command(bus, "KEYS", pattern))):
        name = key.decode()
        if name.endswith("}:epoch"):
            continue
        if await command(bus, "TYPE", name) == b"hash":
            fields = cast("dict[bytes, bytes]", await command(bus, "HGETALL", name))
            value = b"\n".join(sorted(map(b"=".join, fields.items())))
        else:
            value = cast("bytes", await command(bus, "DUMP", name))
        taken[name] = value, await command(bus, "PEXPIRETIME", name)
    return taken


async def values(bus: EventBus, policy: str) -> dict[str, str]:
    """Get what `inspect` says of a policy that has one subject."""
    states = [state async for state in bus.inspect(policy)]
    assert len(states) == 1, states
    return dict(states[0].values)


async def in_use(bus: EventBus, policy: str = "slots", subject: str = "-") -> int:
    """Get how many leases a concurrency cap holds, those that have ended included."""
    key = f"stanchion:{{default}}:slots.leases:{policy}:{subject}"
    return int(await command(bus, "ZCARD", key))


def calls_of_scripts(counted: Mapping[str, int]) -> int:
    """Get how many script calls there were among counted commands."""
    return sum(counted.get(name, 0) for name in ("evalsha", "eval", "fcall", "evalsha_ro"))


async def warm(bus: EventBus, server: RealServer, event: Event) -> None:
    """Make every script known to the server and every connection open, then start from nothing."""
    decision = await bus.check(event)
    assert decision.permit is not None
    await bus.settle(decision.permit)
    await bus.peek(event)
    for key in await command(bus, "KEYS", "*"):
        if not key.endswith(b"}:epoch"):
            server.execute("DEL", key)


async def ticks(count: int = 3) -> AsyncIterator[None]:
    """Let the loop run what is ready, a few times over."""
    for _ in range(count):
        await asyncio.sleep(0)
        yield
