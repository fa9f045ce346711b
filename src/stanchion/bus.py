"""`EventBus`: the control tier's one way in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from stanchion.asking import veto_error
from stanchion.assembly import Parts
from stanchion.config import read_settings
from stanchion.decisions import CircuitState, Decision, Outcome
from stanchion.durations import seconds
from stanchion.events import PolicyChanged, PolicyVetoed
from stanchion.guarding import Guard, guarded
from stanchion.reporting import veto_of
from stanchion.states import walk_states
from stanchion.store.keys import Keyspace
from stanchion.store.sharding import Sharding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import timedelta
    from os import PathLike
    from types import TracebackType

    from stanchion.chain import AnyPolicy
    from stanchion.custody import Custody
    from stanchion.events import Event
    from stanchion.observers import AnyObserver, ObserverManager, Registration
    from stanchion.permit import Permit
    from stanchion.settling import Settlement
    from stanchion.states import PolicyState
    from stanchion.store.protocol import Store

P = ParamSpec("P")
R = TypeVar("R")


class EventBus:
    """Asks policies, in order, whether an event may proceed; all workers share their state.

    Use `EventBus.from_url(...)` as `async with`. One bus serves one event loop.
    """

    def __init__(
        self,
        store: Store,
        keyspace: Keyspace,
        *,
        policies: Iterable[AnyPolicy] = (),
        observers: Iterable[AnyObserver | Registration] = (),
        deadline: float = 1.0,
        processes: int | None = None,
        redact: Iterable[str] = (),
        cache_denials: bool = True,
    ) -> None:
        self._keyspace = keyspace
        self._store = store
        self._parts = parts = Parts(
            store,
            keyspace,
            policies=policies,
            observers=observers,
            deadline=deadline,
            processes=processes,
            redact=redact,
            cache_denials=cache_denials,
        )
        self._chain = parts.chain
        self._observers = parts.observers
        self._listener = parts.listener
        self._asking = parts.asking
        self._custody = parts.custody
        self._administration = parts.administration

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        policies: Iterable[AnyPolicy] = (),
        observers: Iterable[AnyObserver | Registration] = (),
        namespace: str = "default",
        deadline: float = 1.0,
        processes: int | None = None,
        redact: Iterable[str] = (),
        cache_denials: bool = True,
        shard_by: str | Sequence[str] = (),
        shards: int | None = None,
    ) -> Self:
        """Get a bus for a place that a URL names; nothing connects before `async with`.

        Args:
            url: `memory://`, `embedded://`, `embedded:///dir`, `redis://host:port/db`,
                `rediss://...`, `unix:///path`, `redis+cluster://h:p,h:p` or
                `redis+sentinel://h:p,h:p/service/db`, or these two with `rediss` for TLS.
            policies: built-in and custom policies, asked by priority, then in this order.
            observers: told what happened; they never delay or change a decision.
            namespace: separates users of one Redis; its keys share one hash slot, unless it is
                spread over shards.
            deadline: seconds that one check may take, Redis and custom policies included.
            processes: how many processes share the limits; `on_outage="local"` needs to know.
            redact: names or globs of event fields that no observer gets to see.
            cache_denials: whether what was denied is denied again without asking, for the time
                that the denial lasts, 5 s at most; what ends it sooner is heard of over pub/sub.
            shard_by: event fields by which the namespace is spread over the slots of a cluster: a
                policy goes by the first of them that it counts `by`. Policies of one shard are
                decided atomically; those of several are asked in order, and what was charged is
                given back after a veto.
            shards: over how many, 64 where `shard_by` is given; the same for every process.

        Raises:
            ConfigError: the URL, a policy, an observer or another argument cannot work.
        """
        keyspace = Keyspace(namespace, Sharding.of(shard_by, shards))
        limit = seconds(deadline, field="deadline")
        # The Redis client takes longer to import than all the rest; to declare policies, or to
        # show a command's help, nobody needs it.
        from stanchion.store.redis_store import RedisStore

        store = RedisStore(url, keyspace, deadline=limit)
        return cls(
            store,
            keyspace,
            policies=policies,
            observers=observers,
            deadline=limit,
            processes=processes,
            redact=redact,
            cache_denials=cache_denials,
        )

    @classmethod
    def from_config(cls, path: str | PathLike[str]) -> Self:
        """Get a bus as a YAML file says, with what the environment overrides.

        `stanchion.config` says what may stand in it.

        Raises:
            ConfigError: the file cannot be read, or something in it cannot work.
        """
        settings = read_settings(path)
        return cls.from_url(
            settings.url,
            policies=settings.policies,
            observers=settings.observers,
            namespace=settings.namespace,
            deadline=seconds(settings.deadline, field="deadline"),
            processes=settings.processes,
            redact=settings.redact,
            cache_denials=settings.cache_denials,
            shard_by=settings.shard_by,
            shards=settings.shards,
        )

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect and start the observers; for use without `async with`."""
        await self._parts.open()

    async def close(self, drain: timedelta | float | str = 5.0) -> None:
        """Finish what is under way, and let go of every connection.

        The observers have `drain` seconds for what they have not delivered; what is lost is logged,
        and `bus.observers.stats()` counts it as dropped.

        Raises:
            ConfigError: `drain` is no duration; nothing is closed then.
        """
        await self._parts.close(drain)

    # ------------------------------------------------------------------------------- deciding

    async def check(self, event: Event) -> Decision:
        """Decide and charge: every built-in policy atomically, all of them or none.

        Never raises for a veto or an outage. The decision's permit must be settled (or its leases
        run out); after a veto nothing is held.

        Raises:
            ConfigError: a cost or a `by` field of this event is not of a kind that can be counted.
        """
        decision = await self._asking.check(event)
        if not decision.allowed and self._observers.wants(PolicyVetoed):
            self._told(event, decision)
        return decision

    async def peek(self, event: Event) -> Decision:
        """Get what `check` would say now; writes nothing and holds nothing."""
        return await self._asking.foresee(event, self._parts.permit_id())

    async def admit(self, event: Event, wait: float = 0.0) -> Permit:
        """Get a permit, waiting up to `wait` seconds for it.

        Waiters of all processes are served in the order in which they came. They are woken when
        something is freed, or sleep until the exact time; whoever gives up, is cancelled or dies
        leaves no hole. While others wait, a request that does not is refused.

        Raises:
            Vetoed: a policy refused; `RateLimited`, `QuotaExceeded`, `CircuitOpen` and
                `ConcurrencyLimited` say which kind of policy it was.
        """
        if wait > 0:
            decision = await self._parts.waiting.admit(event, self._parts.permit_id(), wait)
            self._told(event, decision)
        else:
            decision = await self.check(event)
        if decision.permit is None:
            raise veto_error(decision, self._chain.get(decision.policy or ""))
        return decision.permit

    def guard(self, event: Event, wait: float = 0.0) -> AbstractAsyncContextManager[Permit, None]:
        """Get a context that is entered only with a permit, and settles it on the way out.

        An exception inside is a failure; cancellation gives back and is never one. The costs
        charged to the permit replace the estimates.

        Raises:
            Vetoed: on entering, when a policy refused.
        """
        return Guard(self.admit, self._custody, event, wait)

    def guarded(
        self,
        event_class: type[Event],
        *,
        wait: float = 0.0,
        costs: Callable[[Any], Mapping[str, int]] | None = None,
        **fields: object,
    ) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
        """Get a decorator that guards each call of an async function as an event.

        Event fields are bound from the arguments by name, `fields` gives the others, and `costs`
        maps the result to what it really cost.

        Raises:
            ConfigError: where it decorates, when a required event field is not to be had.
        """
        return guarded(
            self.admit, self._custody, event_class, wait=wait, costs=costs, fields=fields
        )

    async def settle(
        self, permit: Permit, outcome: Outcome = Outcome.SUCCESS, **costs: int
    ) -> Settlement:
        """Tell every policy how admitted work ended and what it really cost; idempotent.

        What the permit no longer holds is a no-op, reported in the settlement.

        Raises:
            ConfigError: the permit is of another namespace, or counts no such cost.
            StoreUnavailable: Redis did not answer; leases will end what is held.
        """
        chosen = Outcome(outcome)
        return await self._parts.settler.settle(permit, lambda _: chosen, costs)

    async def renew(self, permit: Permit) -> bool:
        """Lengthen a permit's leases by their full length; False where one had ended already.

        A `guard` does so by itself; this is for holders of a permit that came from `check`.

        Raises:
            StoreUnavailable: Redis did not answer; the leases run on as they were.
        """
        return await self._custody.renew(permit)

    @property
    def custody(self) -> Custody:
        """What guards permits here; for other faces of the bus, such as the blocking one."""
        return self._custody

    # --------------------------------------------------------------------------- observability

    @property
    def observers(self) -> ObserverManager:
        """Who is told what happened."""
        return self._observers

    def notify(self, event: Event) -> None:
        """Hand an event to the observers; returns at once and never raises."""
        self._observers.notify(event)

    # -------------------------------------------------------------------------------- policies

    @property
    def policies(self) -> tuple[AnyPolicy, ...]:
        """The policies in the order of asking."""
        return self._chain.policies

    def register(self, policy: AnyPolicy) -> None:
        """Add a policy from the next check on.

        Raises:
            ConfigError: it is no policy, or its name is taken.
        """
        self._chain.add(policy)
        self.notify(PolicyChanged(policy=policy.name, change="registered"))

    def unregister(self, name: str) -> None:
        """Remove a policy from the next check on; its state in Redis ends by itself.

        Raises:
            ConfigError: there is none of that name.
        """
        self._asking.dismiss(self._chain.remove(name))
        self.notify(PolicyChanged(policy=name, change="unregistered"))

    def inspect(self, policy: str | None = None) -> AsyncIterator[PolicyState]:
        """Get the stored state of each live key, of one policy or of all, known here or not."""
        return walk_states(self._store, self._keyspace, policy)

    async def reset(self, name: str, **by: object) -> int:
        """Forget what subjects of a policy have used; get how many had state.

        `by` narrows it to subjects with these values. What they hold becomes stale.

        Raises:
            ConfigError: no built-in policy has that name, or it has no such `by` field.
            StoreUnavailable: Redis did not answer.
        """
        count = await self._administration.reset(name, by)
        self._parts.forget_denials()
        return count

    async def force(self, name: str, state: CircuitState, **by: object) -> CircuitState:
        """Put a circuit into a state for every worker at once; get the one it was in.

        FORCED_OPEN and DISABLED last until another state is set.

        Raises:
            ConfigError: no circuit breaker has that name, or `by` does not name one subject.
            StoreUnavailable: Redis did not answer.
        """
        before = await self._administration.force(name, state, by)
        self._parts.forget_denials()
        return before

    async def override(self, name: str, limit: int | None, **by: object) -> None:
        """Give one subject a limit of its own, in force everywhere at once; None takes it away.

        It is kept in Redis until it is taken away, and waiters try again under it.

        Raises:
            ConfigError: no policy with a limit has that name, `by` does not name one subject, or
                the limit is not a whole number from 1.
            StoreUnavailable: Redis did not answer.
        """
        await self._administration.override(name, limit, by)
        self._parts.forget_denials()

    async def sync(
        self,
        name: str,
        *,
        remaining: int | None = None,
        reset_after: float | None = None,
        retry_after: float | None = None,
        **by: object,
    ) -> bool:
        """Tighten a limit's shared state to a provider's own figures; get whether that changed it.

        At most `remaining` units are left then. A GCRA limit is full again no sooner than after
        `reset_after` seconds, or what it needs to fill up from nothing, and admits nothing before
        `retry_after`; the other rates have no room left at all where a `retry_after` is given, and
        quotas take `remaining` alone. Nothing is ever loosened. `parse_limits` reads the figures
        from a provider's response headers.

        Raises:
            ConfigError: no rate limit or quota has that name, `by` does not name one subject, or a
                figure is negative.
            StoreUnavailable: Redis did not answer.
        """
        return await self._administration.sync(name, remaining, reset_after, retry_after, by)

    # --------------------------------------------------------------------------------- private

    def _told(self, event: Event, decision: Decision) -> Decision:
        if not decision.allowed:
            self._observers.notify(veto_of(event, decision))
        return decision
