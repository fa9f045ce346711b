"""`policy`: an async function as a policy."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import PrivateAttr

from stanchion.decisions import Verdict
from stanchion.errors import ConfigError
from stanchion.events import Event, Selector
from stanchion.policies.deciding import LocalPolicy

if TYPE_CHECKING:
    from typing import Unpack

    from stanchion.policies.deciding import Declared

Answer = Verdict | bool | str | None
Function = Callable[[Any], Awaitable[Answer]]
DENIED: Final = "denied"


class FunctionPolicy(LocalPolicy):
    """What `policy` makes of a function; calling it calls the function."""

    _function: Function = PrivateAttr()

    async def decide(self, event: Event) -> Verdict:
        """Get what the function answers."""
        return self.judged(await self._function(event), DENIED)

    def __call__(self, event: Event) -> Awaitable[Answer]:
        """Call the function itself."""
        return self._function(event)


def policy(
    *, on: Selector | None = None, name: str | None = None, **fields: Unpack[Declared]
) -> Callable[[Function], FunctionPolicy]:
    """Get a decorator that makes a policy of an async function of an event.

    The function answers None or true to let an event pass, false or the reason to veto it, or a
    whole `Verdict`. Without `on` it is asked about the events that its parameter is annotated with,
    and without `name` it has the function's. `fields` are `priority`, `mode`, `on_outage`,
    `on_veto` and `advice`.

    Raises:
        ConfigError: where it decorates: not an async function of one event, or a field that cannot
            work.
    """

    def decorate(function: Function) -> FunctionPolicy:
        called = getattr(function, "__name__", type(function).__name__)
        if not inspect.iscoroutinefunction(function):
            raise ConfigError(f"policy: {called} is not an async function")
        given: dict[str, Any] = {"name": name or called.replace("_", "-").strip("-"), **fields}
        given["on"] = _annotated(function, called) if on is None else on
        made = FunctionPolicy(**given)
        made._function = function  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        functools.update_wrapper(cast("Any", made), function, updated=())
        return made

    return decorate


def _annotated(function: Callable[..., object], called: str) -> type[Event]:
    """Get the event class that a function's one parameter is annotated with."""
    parameters = list(inspect.signature(function).parameters)
    try:
        kind = typing.get_type_hints(function).get(parameters[0]) if parameters else None
    except NameError:
        kind = None
    if isinstance(kind, type) and issubclass(kind, Event):
        return kind
    raise ConfigError(f"policy: {called} has no parameter annotated with an event class: give on=")
