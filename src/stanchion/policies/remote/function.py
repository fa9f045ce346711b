"""`remote_policy`: an async function that asks a service as a policy."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

from pydantic import PrivateAttr

from stanchion.decisions import Verdict
from stanchion.errors import ConfigError
from stanchion.policies.deciding import Declared
from stanchion.policies.remote.base import RemotePolicy
from stanchion.policies.remote.replies import DENIED

if TYPE_CHECKING:
    from datetime import timedelta
    from typing import Unpack

    from stanchion.events import Event, Selector

Function = Callable[[Any], Awaitable[Verdict | bool | str | None]]


class DeclaredRemote(Declared, total=False):
    """The fields of every policy that asks a service beside `name` and `on`."""

    timeout: timedelta | float | str
    by: tuple[str, ...] | str | None
    cache_admit: timedelta | float | str
    cache_deny: timedelta | float | str
    cache_size: int
    independent: bool


class RemoteFunction(RemotePolicy):
    """What `remote_policy` makes of a function; calling it calls the function."""

    _function: Function = PrivateAttr()

    async def ask(self, event: Event) -> Verdict:
        """Get what the function answers."""
        return self.judged(await self._function(event), DENIED)

    def __call__(self, event: Event) -> Awaitable[Verdict | bool | str | None]:
        """Call the function itself."""
        return self._function(event)


def remote_policy(
    *, on: Selector, name: str | None = None, **fields: Unpack[DeclaredRemote]
) -> Callable[[Function], RemoteFunction]:
    """Get a decorator that makes a policy of an async function that asks a service.

    The function answers None or true to let an event pass, false or the reason to veto it, or a
    whole `Verdict`. It has a timeout, a breaker, a cache and the rest of a `RemotePolicy`, whose
    fields these are. Without `name` the policy has the function's.

    Raises:
        ConfigError: where it decorates: not an async function, or a field that cannot work.
    """

    def decorate(function: Function) -> RemoteFunction:
        called = getattr(function, "__name__", type(function).__name__)
        if not inspect.iscoroutinefunction(function):
            raise ConfigError(f"remote_policy: {called} is not an async function")
        given: dict[str, Any] = {"name": name or called.replace("_", "-").strip("-"), **fields}
        made = RemoteFunction(on=on, **given)
        made._function = function  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        functools.update_wrapper(cast("Any", made), function, updated=())
        return made

    return decorate
