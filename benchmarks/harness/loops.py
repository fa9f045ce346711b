"""The event loop that everybody is measured on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from harness.machine import installed

if TYPE_CHECKING:
    from collections.abc import Coroutine

Result = TypeVar("Result")

UVLOOP, ASYNCIO = "uvloop", "asyncio"
NAMES = (UVLOOP, ASYNCIO)


def fastest() -> str:
    """Get the loop that is measured unless another one is asked for."""
    return UVLOOP if installed(UVLOOP) else ASYNCIO


def complete(work: Coroutine[Any, Any, Result], loop: str) -> Result:
    """Run it on a loop of that name."""
    if loop == UVLOOP:
        import uvloop

        factory = uvloop.new_event_loop
    else:
        factory = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)
