"""`guard` and `guarded`: admission around a block or a function, settled however it ends."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast

from stanchion.decisions import Outcome
from stanchion.errors import ConfigError
from stanchion.policies import BuiltInPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from stanchion.custody import Custody
    from stanchion.events import Event
    from stanchion.permit import Permit

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger("stanchion.bus")
Admit = Callable[["Event", float], Awaitable["Permit"]]


class Guard:
    """A block that is entered only with a permit, which is settled however the block ends."""

    __slots__ = ("_admit", "_custody", "_event", "_permit", "_wait")

    def __init__(self, admit: Admit, custody: Custody, event: Event, wait: float) -> None:
        self._admit = admit
        self._custody = custody
        self._event = event
        self._wait = wait
        self._permit: Permit | None = None

    async def __aenter__(self) -> Permit:
        if self._permit is not None:
            raise RuntimeError("a guard is for one block: make another with bus.guard()")
        self._permit = permit = await self._admit(self._event, self._wait)
        self._custody.keep(permit)
        return permit

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        custody, permit = self._custody, self._permit
        if permit is not None:
            custody.let_go(permit)
            await custody.conclude(permit, functools.partial(outcome_of, custody, error))


class _NoResult:
    """Stands for a block, which has no result."""


NO_RESULT: Final = _NoResult()


def outcome_of(
    custody: Custody, ended: BaseException | None, name: str, result: object = NO_RESULT
) -> Outcome:
    """Get what an ending means to the policy of that name; breakers classify for themselves."""
    policy = custody.policy(name)
    if isinstance(policy, BuiltInPolicy):
        try:
            if ended is None and not isinstance(result, _NoResult):
                return policy.judge(result)
            return policy.classify(ended)
        # A predicate of somebody else's must neither keep what is held nor hide how it ended.
        except Exception as error:  # noqa: BLE001
            kind = type(error).__name__
            _log.warning("policy %s could not classify, which counts for nothing: %s", name, kind)
            return Outcome.NEUTRAL
    if ended is None:
        return Outcome.SUCCESS
    return Outcome.FAILURE if isinstance(ended, Exception) else Outcome.NEUTRAL


def bound_event(
    event_class: type[Event], function: Callable[..., object], fields: Mapping[str, object]
) -> Callable[[tuple[Any, ...], Mapping[str, Any]], Event]:
    """Get a maker of events from a function's arguments, bound by name; `fields` gives the others.

    Raises:
        ConfigError: a required event field is neither an argument nor given, or a given field is
            not one of the event's.
    """
    unknown = sorted(fields.keys() - event_class.model_fields.keys())
    if unknown:
        known = sorted(event_class.model_fields)
        raise ConfigError.of("guarded field", unknown[0], f"{event_class.__name__} has {known}")
    signature = inspect.signature(function)
    bound = [name for name in event_class.model_fields if name in signature.parameters]
    missing = [
        name
        for name, info in event_class.model_fields.items()
        if info.is_required() and name not in bound and name not in fields
    ]
    if missing:
        raise ConfigError(
            f"guarded: {event_class.__name__} needs {missing}, and {function!r} has no argument "
            "of that name: name an argument so, or give the field to guarded()"
        )

    def make(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Event:
        arguments = signature.bind(*args, **kwargs)
        arguments.apply_defaults()
        values: dict[str, Any] = {name: arguments.arguments[name] for name in bound}
        return event_class.model_validate(dict(fields) | values)

    return make


def as_admitted(
    function: Callable[P, object], permit: Permit, event: Event, *args: P.args, **kwargs: P.kwargs
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Get the arguments of a call with what policies made of them, such as a redacted prompt."""
    if permit.event is None:
        return args, kwargs
    admitted = type(event).from_cloudevent(dict(permit.event))
    arguments = inspect.signature(function).bind(*args, **kwargs)
    arguments.apply_defaults()
    changed = {
        name: value
        for name in type(event).model_fields.keys() & arguments.arguments.keys()
        if (value := getattr(admitted, name)) != getattr(event, name)
    }
    if not changed:
        return args, kwargs
    arguments.arguments.update(changed)
    return arguments.args, arguments.kwargs


def guarded(
    admit: Admit,
    custody: Custody,
    event_class: type[Event],
    *,
    wait: float,
    costs: Callable[[Any], Mapping[str, int]] | None,
    fields: Mapping[str, object],
) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
    """Get a decorator that admits each call of an async function as an event.

    `costs` gets the result and says what it really cost; for the rest see `bound_event`.
    """

    def decorate(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        if not inspect.iscoroutinefunction(function):
            raise ConfigError(f"guarded: {function!r} is not an async function")
        make = bound_event(event_class, function, fields)

        @functools.wraps(function)
        async def _call(*args: P.args, **kwargs: P.kwargs) -> R:
            event = make(args, kwargs)
            permit = await admit(event, wait)
            ended, result = None, cast("object", NO_RESULT)
            try:
                custody.keep(permit)
                given, named = as_admitted(function, permit, event, *args, **kwargs)
                answer = await function(*given, **named)
                if costs is not None:
                    permit.charge(**costs(answer))
            except BaseException as error:
                ended = error
                raise
            else:
                result = answer
                return answer
            finally:
                custody.let_go(permit)
                outcomes = functools.partial(outcome_of, custody, ended, result=result)
                await custody.conclude(permit, outcomes)

        return _call

    return decorate
