"""What the workers ask for, under which limits: the same in every worker and in the checker."""

from __future__ import annotations

import asyncio
from typing import Any

from stanchion import CircuitBreaker, Concurrency, Event, Quota, RateLimit, Verdict
from stanchion.durations import micros

NAMESPACE = "soak"
PREFIX = f"stanchion:{{{NAMESPACE}}}:"
#: Seconds that one call of a bus may take.
DEADLINE = 0.6
#: Seconds for which an unattended lease lives, the longest of all of them.
LEASE = 2.0
#: How many processes `on_outage="local"` shares a limit out among.
PROCESSES = 4
SUBJECTS = ("acme", "globex")
#: A subject of which a fault breaks the state; nothing else is ever asked about it.
VICTIM = "victim"
UNWANTED = "unwanted"
MICROS = 1_000_000
PLENTY = 10**12


class Asked(Event, type="soak:asked"):
    """What all of them have."""

    who: str
    tokens: int = 1
    #: Whether the custom policy is to veto it, after everything else has been charged.
    unwanted: bool = False


class Plenty(Asked, type="soak:plenty"):
    """Under every kind of limit, none of which is ever reached: what vetoes it is a fault."""


class Chain(Asked, type="soak:chain"):
    """Under every kind of limit, each of which is reached now and then."""


class Gcra(Asked, type="soak:gcra"):
    pass


class Fixed(Asked, type="soak:fixed"):
    pass


class Sliding(Asked, type="soak:sliding"):
    pass


class Log(Asked, type="soak:log"):
    pass


class Calendar(Asked, type="soak:calendar"):
    pass


class Rolling(Asked, type="soak:rolling"):
    pass


class Returned(Asked, type="soak:returned"):
    pass


class Held(Asked, type="soak:held"):
    pass


class Provider(Asked, type="soak:provider"):
    pass


class AheadRate(Asked, type="soak:aheadrate"):
    pass


class AheadQuota(Asked, type="soak:aheadquota"):
    pass


class Admitting(Asked, type="soak:admitting"):
    pass


class Alone(Asked, type="soak:alone"):
    pass


class Noted(Event, type="soak:noted"):
    """Only for observers."""

    number: int


KINDS: dict[str, type[Asked]] = {
    kind.event_type: kind
    for kind in (
        *(Plenty, Chain, Gcra, Fixed, Sliding, Log, Calendar, Rolling, Returned, Held, Provider),
        *(AheadRate, AheadQuota, Admitting, Alone),
    )
}


class Whim:
    """A custom policy, asked last: what it vetoes must have cost nothing."""

    name = "whim"
    on = (Plenty, Chain)
    priority = 200

    async def evaluate(self, event: Event) -> Verdict:
        await asyncio.sleep(0)
        unwanted = isinstance(event, Asked) and event.unwanted
        return Verdict(self.name, allowed=not unwanted, reason=UNWANTED if unwanted else "ok")


def policies() -> list[Any]:
    """Get every policy, in the order of asking."""
    lease, by = LEASE, "who"
    tokens: dict[str, Any] = {"by": by, "cost": "tokens"}
    money: dict[str, Any] = {**tokens, "lease": lease, "warn_at": (0.5, 1.0)}
    ample: dict[str, Any] = {**money, "limit": PLENTY}
    short: dict[str, Any] = {**money, "limit": 20}
    trips: dict[str, Any] = {
        "by": by,
        "failure_rate": 0.5,
        "minimum_calls": 6,
        "window": "3s",
        "open_for": "400ms",
        "max_open_for": "2s",
        "jitter": 0.2,
        "half_open_calls": 2,
        "lease": lease,
    }
    never: dict[str, Any] = {"by": by, "consecutive_failures": 10**6, "lease": lease}
    return [
        RateLimit(name="p-rate", on=Plenty, limit=10**6, per="1s", **tokens),
        Quota(name="p-budget", on=Plenty, per="year", **ample),
        Quota(name="p-rolling", on=Plenty, per="1h", rolling=True, **ample),
        Concurrency(name="p-slots", on=Plenty, by=by, limit=10**6, lease=lease),
        CircuitBreaker(name="p-breaker", on=Plenty, **never),
        RateLimit(name="c-rate", on=Chain, limit=8, per="1s", burst=6, **tokens),
        Quota(name="c-quota", on=Chain, per="5s", **short),
        Concurrency(name="c-slots", on=Chain, by=by, limit=3, lease=lease),
        CircuitBreaker(name="c-breaker", on=Chain, **trips),
        RateLimit(name="gcra", on=Gcra, limit=8, per="1s", burst=6, **tokens),
        RateLimit(name="fixed", on=Fixed, limit=8, per="2s", algorithm="fixed_window", **tokens),
        RateLimit(
            name="sliding", on=Sliding, limit=8, per="2s", algorithm="sliding_window", **tokens
        ),
        RateLimit(name="log", on=Log, limit=8, per="2s", algorithm="sliding_log", **tokens),
        Quota(name="calendar", on=Calendar, per="5s", **short),
        Quota(name="rolling", on=Rolling, per="5s", rolling=True, slices=10, **short),
        Quota(name="returned", on=Returned, per="year", unsettled="refund", **ample),
        Concurrency(name="held", on=Held, by=by, limit=4, lease=lease),
        CircuitBreaker(name="provider", on=Provider, **trips),
        RateLimit(name="a-rate", on=AheadRate, by=by, limit=4, per="1s", burst=5, prefetch=2),
        Quota(name="a-quota", on=AheadQuota, per="5s", prefetch=3, **short),
        RateLimit(name="admitting", on=Admitting, by=by, limit=10**6, per="1s", on_outage="admit"),
        RateLimit(
            **{"name": "alone", "on": Alone, "limit": 16, "per": "2s", **tokens},
            algorithm="fixed_window",
            on_outage="local",
        ),
        Whim(),
    ]


#: By name, without the custom one.
BY_NAME: dict[str, Any] = {policy.name: policy for policy in policies() if policy.name != "whim"}
#: Those that charge what an event says that it costs.
BY_TOKENS = frozenset(
    name for name, policy in BY_NAME.items() if getattr(policy, "cost", 1) == "tokens"
)
#: The names of those under which each event falls, by its type.
UNDER: dict[str, frozenset[str]] = {
    kind.event_type: frozenset(
        policy.name
        for policy in policies()
        if kind in (policy.on if isinstance(policy.on, tuple) else (policy.on,))
    )
    for kind in KINDS.values()
}


def us(value: Any) -> int:
    """Get a duration in microseconds."""
    return micros(value, field="duration")
