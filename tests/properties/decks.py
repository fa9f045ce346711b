"""What the machines are dealt: declarations of policies, and events to ask them about."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from stanchion import CircuitBreaker, Concurrency, Event, Quota, RateLimit, Verdict
from stanchion.policies import BuiltInPolicy

Deck = dict[str, SearchStrategy[BuiltInPolicy]]

MICROS = 1_000_000
MOST = 10
COSTS = ("calls", "bytes", "tokens", "budget", "slots")


STEPS = (
    st.integers(0, 5)
    | st.integers(1, 20 * MICROS)
    | st.sampled_from([1_000, 333_333, MICROS, 10 * MICROS, 60 * MICROS, 600 * MICROS])
    | st.sampled_from([3_600 * MICROS, 86_400 * MICROS])
)
LUCK = st.integers(0, MICROS - 1) | st.sampled_from([0, 10, 100_000, 550_000, 999_999])
SHARES = st.none() | st.integers(0, 3 * MOST) | st.integers(0, 2)
WORKERS = st.sampled_from(["w1", "w2", "w3"])
SELDOM = st.sampled_from([False, False, True])


class Alpha(Event, type="proof:alpha"):
    calls: int = 1
    bytes: int = 1
    tokens: int = 1
    budget: int = 1
    slots: int = 1


class Beta(Alpha, type="proof:beta"):
    pass


class Gamma(Alpha, type="proof:gamma"):
    pass


SHAPES: tuple[type[Alpha], ...] = (Alpha, Beta, Gamma)
TENANTS = ("t1", "t2")

# Short and long, and some of which the limits are no divisors.
PERIODS = st.sampled_from([1.0, 0.7, 10.0, 3.0, 60.0, 0.25, 3600.0])
LEASES = st.sampled_from([0.5, 2.0, 15.0, 90.0, 600.0])
LIMITS = st.integers(1, MOST)
CHANGES = st.sampled_from(["keep", "scale", "remaining", "reset"])
COLD = st.sampled_from(["fresh", "fresh", "spent"])
COLD_QUOTA = st.sampled_from(["fresh", "fresh", "spent", "prorated"])
FEW = st.sampled_from([1, 1, 2])
MODES = st.sampled_from(["enforce", "enforce", "enforce", "shadow"])
EVERYWHERE: SearchStrategy[Any] = st.just(tuple(shape.event_type for shape in SHAPES))
SOMEWHERE: SearchStrategy[Any] = st.sets(
    st.sampled_from([shape.event_type for shape in SHAPES]), min_size=1
).map(lambda types: tuple(sorted(types)))


def _rate(name: str, where: SearchStrategy[Any], **fields: SearchStrategy[Any]) -> Any:
    return st.builds(
        partial(RateLimit, name=name, by=("tenant",), cost=name),
        on=where,
        mode=MODES,
        limit=LIMITS,
        per=PERIODS,
        cold_start=COLD,
        **{"on_change": CHANGES, **fields},
    )


def gcra(name: str, where: SearchStrategy[Any] = EVERYWHERE) -> Any:
    return _rate(name, where, burst=st.none() | LIMITS)


def sliding_window(name: str, where: SearchStrategy[Any] = EVERYWHERE) -> Any:
    return _rate(name, where, algorithm=st.just("sliding_window"), slices=st.sampled_from([10, 13]))


def sliding_log(name: str, where: SearchStrategy[Any] = EVERYWHERE) -> Any:
    changes = st.sampled_from(["keep", "reset"])
    return _rate(name, where, algorithm=st.just("sliding_log"), on_change=changes)


def fixed_window(name: str, where: SearchStrategy[Any] = EVERYWHERE) -> Any:
    return _rate(name, where, algorithm=st.just("fixed_window"))


def _quota(name: str, where: SearchStrategy[Any], **fields: SearchStrategy[Any]) -> Any:
    return st.builds(
        partial(Quota, name=name, by=("tenant",), cost=name),
        on=where,
        mode=MODES,
        limit=LIMITS,
        lease=LEASES,
        unsettled=st.sampled_from(["charge", "refund"]),
        overage=st.sampled_from(["debt", "clip"]),
        warn_at=st.sampled_from([(0.8, 1.0), (0.07, 0.29, 0.5), ()]),
        on_change=CHANGES,
        cold_start=COLD_QUOTA,
        **fields,
    )


def quota(name: str, where: SearchStrategy[Any] = EVERYWHERE) -> Any:
    return _quota(name, where, per=PERIODS, rollover=st.integers(0, MOST))


def calendar(name: str, where: SearchStrategy[Any] = EVERYWHERE) -> Any:
    return _quota(
        name,
        where,
        per=st.sampled_from(["hour", "day", "week", "month"]),
        timezone=st.just("Europe/Berlin"),
        rollover=st.integers(0, MOST),
    )


def rolling(name: str, where: SearchStrategy[Any] = EVERYWHERE) -> Any:
    return _quota(name, where, per=PERIODS, rolling=st.just(True), slices=st.sampled_from([10, 13]))


def slots(name: str, where: SearchStrategy[Any] = EVERYWHERE, **fields: SearchStrategy[Any]) -> Any:
    return st.builds(
        partial(Concurrency, name=name, by=("tenant",), cost=name),
        on=where,
        mode=MODES,
        limit=LIMITS,
        lease=LEASES,
        cold_start=COLD,
        **fields,
    )


def _trips(fields: dict[str, Any]) -> bool:
    return any(name in fields for name in ("failure_rate", "consecutive_failures", "slow_call"))


@st.composite
def circuit(draw: Callable[..., Any], name: str, where: SearchStrategy[Any] = EVERYWHERE) -> Any:
    fields: dict[str, Any] = {}
    if draw(st.booleans()):
        fields["failure_rate"] = draw(st.sampled_from([0.1, 0.3, 0.5, 0.57, 1.0]))
    if draw(st.booleans()):
        fields |= {
            "slow_call": draw(st.sampled_from([0.5, 1.0, 5.0])),
            "slow_call_rate": draw(st.sampled_from([0.3, 0.5, 1.0])),
        }
    if draw(st.booleans()) or not _trips(fields):
        fields["consecutive_failures"] = draw(st.integers(1, 4))
    if draw(st.booleans()):
        fields["max_open_for"] = draw(st.sampled_from([10.0, 25.0]))
    if draw(st.booleans()):
        fields["ramp_up"] = draw(st.sampled_from([1.0, 20.0]))
    minimum = draw(st.integers(1, 5))
    return CircuitBreaker(
        name=name,
        by=("tenant",),
        on=draw(where),
        mode=draw(MODES),
        minimum_calls=minimum,
        window=draw(st.sampled_from([2.0, 30.0, minimum, minimum + 3])),
        open_for=draw(st.sampled_from([0.5, 3.0, 10.0])),
        jitter=draw(st.sampled_from([0.0, 0.0, 0.1, 0.37, 1.0])),
        half_open_calls=draw(st.integers(1, 3)),
        lease=draw(LEASES),
        min_reporters=draw(st.sampled_from([1, 1, 2])),
        **fields,
    )


ALONE: dict[str, Deck] = {
    "gcra": {"calls": gcra("calls")},
    "sliding_window": {"calls": sliding_window("calls")},
    "sliding_log": {"calls": sliding_log("calls")},
    "fixed_window": {"calls": fixed_window("calls")},
    "quota": {"tokens": quota("tokens")},
    "calendar": {"tokens": calendar("tokens")},
    "rolling": {"tokens": rolling("tokens")},
    "circuit": {"provider": circuit("provider")},
    "slots": {"slots": slots("slots")},
    "few": {
        "calls": _rate("calls", EVERYWHERE, max_subjects=FEW),
        "slots": slots("slots", max_subjects=FEW),
    },
}

TOGETHER: Deck = {
    "calls": gcra("calls", SOMEWHERE),
    "bytes": st.one_of(
        sliding_window("bytes", SOMEWHERE),
        sliding_log("bytes", SOMEWHERE),
        fixed_window("bytes", SOMEWHERE),
        gcra("bytes", SOMEWHERE),
    ),
    "tokens": st.one_of(quota("tokens", SOMEWHERE), calendar("tokens", SOMEWHERE)),
    "budget": rolling("budget", SOMEWHERE),
    "provider": circuit("provider", SOMEWHERE),
    "slots": slots("slots", SOMEWHERE),
}


def events(names: tuple[str, ...]) -> SearchStrategy[Alpha]:
    """Get events whose costs for these policies vary."""
    amount = st.integers(0, MOST + 2) | st.sampled_from([1, 1, 2])
    costs = {name: amount for name in COSTS if name in names}
    return st.builds(
        lambda shape, tenant, numbers: shape(tenant=tenant, **numbers),
        st.sampled_from(SHAPES),
        st.sampled_from(TENANTS),
        st.fixed_dictionaries(costs),
    )


class Objector:
    """A policy that is asked last, and vetoes when it is told to."""

    name = "objector"
    on = Alpha.event_type, Beta.event_type, Gamma.event_type
    priority = 1000

    def __init__(self) -> None:
        self.objects = frozenset[str]()

    async def evaluate(self, event: Event) -> Verdict:
        return Verdict(self.name, allowed=event.id not in self.objects, reason="objected")
