"""Observers that fail, wait and take notes as a test tells them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from stanchion.events import Event, ToolCalled
from stanchion.observers import Retry

QUICK = Retry(first=0.001, longest=0.002)


def call(tool: object = "t", run: str | None = None) -> ToolCalled:
    return ToolCalled(tool=str(tool), run_id=run)


def tools(events: Sequence[Event]) -> list[str]:
    return [event.tool for event in events if isinstance(event, ToolCalled)]


class Batching:
    """Keeps the batches that it was given, and raises what `fails` returns for one."""

    def __init__(
        self,
        size: int = 10,
        *,
        delay: float = 0.0,
        idempotent: bool = False,
        fails: Callable[[Any], BaseException | None] = lambda events: None,
    ) -> None:
        self.batch_size = size
        self.batch_delay = delay
        self.idempotent = idempotent
        self.fails = fails
        self.batches: list[list[str]] = []

    async def handle_batch(self, events: Any) -> None:
        self.batches.append(tools(events))
        error = self.fails(events)
        if error is not None:
            raise error

    @property
    def got(self) -> list[str]:
        return [tool for batch in self.batches for tool in batch]


class Failing:
    """Raises as long as there is something left in `errors`; then works."""

    def __init__(self, *errors: BaseException, idempotent: bool = False) -> None:
        self.errors = list(errors)
        self.idempotent = idempotent
        self.calls: list[str] = []
        self.times: list[float] = []
        self.got: list[str] = []

    async def handle(self, event: Any) -> None:
        self.calls += tools([event])
        self.times.append(asyncio.get_running_loop().time())
        if self.errors:
            raise self.errors.pop(0)
        self.got += tools([event])
