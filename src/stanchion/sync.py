"""The same bus without `await`, for code that has no event loop."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from stanchion.bus import EventBus as AsyncEventBus
from stanchion.decisions import CircuitState, Decision, Outcome
from stanchion.errors import ConfigError, StanchionError
from stanchion.guarding import NO_RESULT, as_admitted, bound_event, outcome_of
from stanchion.loops import new_event_loop
from stanchion.observers.terms import span
from stanchion.policies.kill_switch import KillSwitch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
    from datetime import timedelta
    from os import PathLike
    from types import TracebackType

    from stanchion.chain import AnyPolicy
    from stanchion.events import Event
    from stanchion.observers import AnyObserver, ObserverManager, Registration
    from stanchion.permit import Permit
    from stanchion.settling import Settlement
    from stanchion.states import PolicyState
    from stanchion.store.halts import Halt

P = ParamSpec("P")
R = TypeVar("R")


class EventBus:
    """Asks policies, in order, whether an event may proceed; blocks instead of awaiting.

    Use `EventBus.from_url(...)` as `with`. One background thread runs an event loop for all
    callers; any number of threads may call. Inside a running event loop it refuses to work, since
    it would block that loop: use `stanchion.EventBus` there.
    """

    def __init__(self, bus: AsyncEventBus) -> None:
        self._bus = bus
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

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
        """Get a bus for a place that a URL names; see `stanchion.EventBus.from_url`."""
        return cls(
            AsyncEventBus.from_url(
                url,
                policies=policies,
                observers=observers,
                namespace=namespace,
                deadline=deadline,
                processes=processes,
                redact=redact,
                cache_denials=cache_denials,
                shard_by=shard_by,
                shards=shards,
            )
        )

    @classmethod
    def from_config(cls, path: str | PathLike[str]) -> Self:
        """Get a bus as a YAML file says; see `stanchion.EventBus.from_config`."""
        return cls(AsyncEventBus.from_config(path))

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        """Start the background loop, connect, and start the observers."""
        _refuse_inside_loop()
        if self._loop is not None:
            return
        self._loop = new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="stanchion-sync", daemon=True
        )
        self._thread.start()
        try:
            self._run(self._bus.open())
        except BaseException:
            self._stop()
            raise

    def close(self, drain: timedelta | float | str = 5.0) -> None:
        """Finish what is under way, and stop the background loop.

        The observers have `drain` seconds for what they have not delivered.

        Raises:
            ConfigError: `drain` is no duration; nothing is closed then.
        """
        if self._loop is None:
            return
        span(drain, field="drain")
        try:
            self._run(self._bus.close(drain))
        finally:
            self._stop()

    def check(self, event: Event) -> Decision:
        """Decide and charge; never raises for a veto or an outage."""
        return self._run(self._bus.check(event))

    def peek(self, event: Event) -> Decision:
        """Get what `check` would say now; writes nothing."""
        return self._run(self._bus.peek(event))

    def admit(self, event: Event, wait: float = 0.0) -> Permit:
        """Get a permit, waiting up to `wait` seconds in line for it, or raise Vetoed."""
        return self._run(self._bus.admit(event, wait))

    @contextmanager
    def guard(self, event: Event, wait: float = 0.0) -> Generator[Permit]:
        """Enter only with a permit, or raise Vetoed; settles on the way out."""
        with self._holding(event, wait) as (permit, _):
            yield permit

    def guarded(
        self,
        event_class: type[Event],
        *,
        wait: float = 0.0,
        costs: Callable[[Any], Mapping[str, int]] | None = None,
        **fields: object,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Get a decorator that guards each call of a function as an event.

        Raises:
            ConfigError: where it decorates, when a required event field is not to be had.
        """

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            if inspect.iscoroutinefunction(function):
                raise ConfigError(f"guarded: {function!r} is async: use stanchion.EventBus")
            make = bound_event(event_class, function, fields)

            @functools.wraps(function)
            def call(*args: P.args, **kwargs: P.kwargs) -> R:
                event = make(args, kwargs)
                with self._holding(event, wait) as (permit, returned):
                    given, named = as_admitted(function, permit, event, *args, **kwargs)
                    answer = function(*given, **named)
                    if costs is not None:
                        permit.charge(**costs(answer))
                    returned(answer)
                    return answer

            return call

        return decorate

    def settle(
        self, permit: Permit, outcome: Outcome = Outcome.SUCCESS, **costs: int
    ) -> Settlement:
        """Tell every policy how admitted work ended and what it really cost; idempotent."""
        return self._run(self._bus.settle(permit, outcome, **costs))

    def renew(self, permit: Permit) -> bool:
        """Lengthen a permit's leases by their full length; False where one had ended already."""
        return self._run(self._bus.renew(permit))

    @property
    def observers(self) -> ObserverManager:
        """Who is told what happened."""
        return self._bus.observers

    def notify(self, event: Event) -> None:
        """Hand an event to the observers; returns at once and never raises."""
        self._bus.notify(event)

    @property
    def policies(self) -> tuple[AnyPolicy, ...]:
        """The policies in the order of asking."""
        return self._bus.policies

    def register(self, policy: AnyPolicy) -> None:
        """Add a policy from the next check on."""
        self._bus.register(policy)

    def unregister(self, name: str) -> None:
        """Remove a policy from the next check on."""
        self._bus.unregister(name)

    def switch(self, name: str) -> Switch:
        """Get the commands of the `KillSwitch` of that name.

        Raises:
            ConfigError: no kill switch of this bus has that name.
        """
        found = [one for one in self.policies if isinstance(one, KillSwitch) and one.name == name]
        if not found:
            raise ConfigError.of("policy name", name, "expected that of a KillSwitch")
        return Switch(found[0], self._run)

    def inspect(self, policy: str | None = None) -> tuple[PolicyState, ...]:
        """Get the stored state of each live key, of one policy or of all."""

        async def _collect() -> tuple[PolicyState, ...]:
            return tuple([state async for state in self._bus.inspect(policy)])

        return self._run(_collect())

    def reset(self, name: str, **by: object) -> int:
        """Forget what subjects of a policy have used; how many had state."""
        return self._run(self._bus.reset(name, **by))

    def force(self, name: str, state: CircuitState, **by: object) -> CircuitState:
        """Put a circuit into a state for every worker at once; the one that it was in."""
        return self._run(self._bus.force(name, state, **by))

    def override(self, name: str, limit: int | None, **by: object) -> None:
        """Give one subject a limit of its own, None to take it away."""
        self._run(self._bus.override(name, limit, **by))

    def sync(
        self,
        name: str,
        *,
        remaining: int | None = None,
        reset_after: float | None = None,
        retry_after: float | None = None,
        **by: object,
    ) -> bool:
        """Tighten a limit's shared state to a provider's own figures; whether that changed it."""
        return self._run(
            self._bus.sync(
                name,
                remaining=remaining,
                reset_after=reset_after,
                retry_after=retry_after,
                **by,
            )
        )

    @contextmanager
    def _holding(
        self, event: Event, wait: float
    ) -> Generator[tuple[Permit, Callable[[object], None]]]:
        """Hold a permit and settle it at the end; whoever has a result to be judged tells it."""
        permit = self.admit(event, wait)
        self._bus.custody.keep(permit)
        ended: BaseException | None = None
        results: list[object] = [NO_RESULT]
        try:
            yield permit, results.append
        except BaseException as error:
            ended = error
            raise
        finally:
            self._bus.custody.let_go(permit)
            outcomes = functools.partial(outcome_of, self._bus.custody, ended, result=results[-1])
            self._run(self._bus.custody.conclude(permit, outcomes))

    def _run(self, work: Coroutine[Any, Any, R]) -> R:
        loop = self._loop
        if loop is None:
            work.close()
            raise StanchionError("the bus is not open: use `with EventBus.from_url(...)`")
        try:
            _refuse_inside_loop()
        except ConfigError:
            work.close()
            raise
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:
            # An interrupted caller must not leave its work running, nor what it took unheld.
            future.cancel()
            raise

    def _stop(self) -> None:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        self._loop = self._thread = None


class Switch:
    """The commands of a `KillSwitch` without `await`; `EventBus.switch` gets it."""

    def __init__(self, switch: KillSwitch, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._switch = switch
        self._run = run

    def halt(
        self,
        on: str,
        *,
        who: str,
        why: str,
        last: timedelta | float | str | None = None,
        **by: object,
    ) -> bool:
        """Stop events whose type matches `on`, in every worker; False if they were already."""
        return self._run(self._switch.halt(on, who=who, why=why, last=last, **by))

    def resume(self, on: str | None = None, **by: object) -> int:
        """Let go on what was halted with this `on` and `by`, without `on` all; how many."""
        return self._run(self._switch.resume(on, **by))

    def halted(self) -> tuple[Halt, ...]:
        """Get what is halted now, the oldest first."""
        return self._run(self._switch.halted())


def _refuse_inside_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigError("stanchion.sync blocks and an event loop runs here: use stanchion.EventBus")
