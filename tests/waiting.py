"""Waiting for an effect: poll the condition, with a deadline."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class _Attempt:
    """What the condition last gave or raised, for the text of the failure."""

    def __init__(self, timeout: float, what: str) -> None:
        self._timeout = timeout
        self._what = what or "the condition"
        self._ends = time.monotonic() + timeout

    def over(self) -> bool:
        return time.monotonic() >= self._ends

    def failure(self, last: object) -> AssertionError:
        waited = f"{self._timeout:g} s"
        return AssertionError(f"{self._what} did not hold within {waited}; last: {last!r}")


async def eventually(
    condition: Callable[[], Awaitable[T] | T],
    timeout: float = 5.0,
    *,
    what: str = "",
    interval: float = 0.01,
) -> T:
    """Return what the condition gives as soon as that is true.

    The condition may be a coroutine function, and may assert: an AssertionError means "not yet".
    """
    attempt = _Attempt(timeout, what)
    while True:
        try:
            given = condition()
            result = await cast("Awaitable[T]", given) if inspect.isawaitable(given) else given
            result = cast("T", result)
        except AssertionError as error:
            if attempt.over():
                raise attempt.failure(error) from error
        else:
            if result:
                return result
            if attempt.over():
                raise attempt.failure(result)
        await asyncio.sleep(interval)


def eventually_sync(
    condition: Callable[[], T], timeout: float = 5.0, *, what: str = "", interval: float = 0.01
) -> T:
    """Do what `eventually` does, without a loop."""
    attempt = _Attempt(timeout, what)
    while True:
        try:
            result = condition()
        except AssertionError as error:
            if attempt.over():
                raise attempt.failure(error) from error
        else:
            if result:
                return result
            if attempt.over():
                raise attempt.failure(result)
        time.sleep(interval)
