"""Services that policies ask: OPA, Cerbos, and one that does everything wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from stanchion import EventBus
from tests.conftest import Pool
from tests.remote.cerbos import Cerbos, program
from tests.remote.faulty import FaultyServer
from tests.remote.opa_shell import OpaShell


@pytest.fixture
async def opa() -> AsyncIterator[OpaShell]:
    """An OPA without rules."""
    shell = OpaShell()
    await shell.start()
    yield shell
    await shell.stop()


@pytest.fixture
async def faulty() -> AsyncIterator[FaultyServer]:
    """A server that admits until it is told otherwise."""
    server = FaultyServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def cerbos(pool: Pool) -> Cerbos:
    """A Cerbos with one policy; it lives for the session."""
    program()
    return pool.lend("cerbos", lambda: Cerbos(pool.reaper))


@pytest.fixture
async def in_memory() -> AsyncIterator[Any]:
    """Opens buses on `memory://`: `bus = await in_memory(policy, ...)`."""
    async with AsyncExitStack() as stack:

        async def opened(*policies: Any, **options: Any) -> EventBus:
            bus = EventBus.from_url("memory://", policies=policies, **options)
            return await stack.enter_async_context(bus)

        yield opened
