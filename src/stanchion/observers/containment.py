"""Where the failures of observers end: nothing that one raises gets past these few lines."""

from __future__ import annotations

from pathlib import PurePath
from traceback import walk_tb
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Containment:
    """Keeps what the block raised in `error`, `SystemExit` and cancellation included.

    An asyncio task that ends with `SystemExit` or `KeyboardInterrupt` takes the event loop down
    with it, and a thread that does so ends; neither may happen because an observer is broken.
    """

    __slots__ = ("error",)

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self.error = error
        return True


def summary(error: BaseException) -> str:
    """Get the error's type and the line that raised it, without its text.

    The text of an exception often quotes what the code was working on; prompts and tenants do not
    belong in a log that nobody asked for.
    """
    kind = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    frames = list(walk_tb(error.__traceback__))
    if not frames:
        return name
    frame, line = frames[-1]
    return f"{name} at {PurePath(frame.f_code.co_filename).name}:{line} in {frame.f_code.co_name}"
