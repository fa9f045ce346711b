"""Cancellations that get through, whatever the client below does with them."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def heeded() -> Generator[None]:
    """Raise a cancellation that came during the block and was lost in it.

    Clients wait with `asyncio.wait_for`, which on Python 3.11 loses a cancellation that comes in
    the same turn of the loop as what it waits for. A task that was cancelled would run on.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    yield
    if task and task.cancelling() > before:
        raise asyncio.CancelledError
