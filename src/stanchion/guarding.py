"""`guard` and `guarded`: admission around a block or a function, settled however it ends."""

from __future__ import annotations

import asyncio
import functools
import inspect
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast

from stanchion.decisions import Outcome
from stanchion.errors import ConfigError
from stanchion.policies import BuiltInPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from stanchion.events import Event
    from stanchion.permit import Permit

P = ParamSpec("P")
R = TypeVar("R")


class Admitting(Protocol):
    """What guarding needs of a bus."""

    async def admit(self, event: Event, wait: float = 0.0) -> Permit:
        """Get a permit, or raise Vetoed."""
        ...

    async def conclude(self, permit: Permit, outcomes: Callable[[str], Outcome]) -> None:
        """Settle a permit; what goes wrong is reported and not raised."""
        ...

    def hold(self, permit: Permit) -> AbstractAsyncContextManager[None]:
        """Keep the permit's leases alive while the context lasts."""
        ...

    def policy(self, name: str) -> object:
        """Get a policy by name, None where it is not registered."""
        ...


@asynccontextmanager
async def guarding(bus: Admitting, event: Event, wait: float) -> AsyncIterator[Permit]:
    """Yield a permit and settle it at the end of the block, shielded from cancellation."""
    permit = await bus.admit(event, wait)
    ended: BaseException | None = None
    try:
        async with bus.hold(permit):
            yield permit
    except BaseException as error:
        ended = error
        raise
    finally:
        await _shielded(bus.conclude(permit, functools.partial(_outcome, bus, ended, _NO_RESULT)))


async def _shielded(work: Awaitable[None]) -> None:
    """Finish the work even when this task is cancelled meanwhile; then let the cancellation on."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


class _NoResult:
    """Stands for a block, which has no result."""


_NO_RESULT = _NoResult()


def _outcome(bus: Admitting, ended: BaseException | None, result: object, name: str) -> Outcome:
    policy = bus.policy(name)
    if isinstance(policy, BuiltInPolicy):
        if ended is None and not isinstance(result, _NoResult):
            return policy.judge(result)
        return policy.classify(ended)
    if ended is None:
        return Outcome.SUCCESS
    return Outcome.FAILURE if isinstance(ended, Exception) else Outcome.NEUTRAL


def guarded(
    bus: Admitting,
    event_class: type[Event],
    *,
    wait: float,
    costs: Callable[[Any], Mapping[str, int]] | None,
    fields: Mapping[str, object],
) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
    """Get a decorator that admits each call of an async function as an event.

    Event fields are bound from the arguments by name; `fields` gives the others. `costs` gets the
    result and says what it really cost.

    Raises:
        ConfigError: the function is not async, a required event field is neither an argument nor
            given, or a given field is not one of the event's.
    """
    unknown = fields.keys() - event_class.model_fields.keys()
    if unknown:
        raise ConfigError.of(
            "guarded field", sorted(unknown)[0], f"{event_class.__name__} has {sorted(event_class.model_fields)}"
        )

    def decorate(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        if not inspect.iscoroutinefunction(function):
            raise ConfigError(f"guarded: {function!r} is not an async function")
        signature = inspect.signature(function)
        bound = [name for name in event_class.model_fields if name in signature.parameters]
        missing = [
            name
            for name, info in event_class.model_fields.items()
            if info.is_required() and name not in bound and name not in fields
        ]
        if missing:
            raise ConfigError(
                f"guarded: {event_class.__name__} needs {missing}, which {function.__qualname__} "
                "has no argument for: name an argument so, or give the field to guarded()"
            )

        @functools.wraps(function)
        async def call(*args: P.args, **kwargs: P.kwargs) -> R:
            arguments = signature.bind(*args, **kwargs)
            arguments.apply_defaults()
            values = {name: arguments.arguments[name] for name in bound}
            permit = await bus.admit(event_class(**{**fields, **values}), wait)
            ended, result = None, cast("object", _NO_RESULT)
            try:
                async with bus.hold(permit):
                    answer = await function(*args, **kwargs)
                if costs is not None:
                    permit.charge(**costs(answer))
                result = answer
                return answer
            except BaseException as error:
                ended = error
                raise
            finally:
                outcomes = functools.partial(_outcome, bus, ended, result)
                await _shielded(bus.conclude(permit, outcomes))

        return call

    return decorate
