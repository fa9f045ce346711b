"""One batch on its way: what it carries, who hears of it, and what its reply means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from redis.exceptions import NoScriptError, RedisError, ResponseError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from stanchion.store.lane import Lane, Word
    from stanchion.store.outage import OutageGate
    from stanchion.store.scripts import Script

    Answered = Callable[[list[Any]], None]
    Failed = Callable[[BaseException], None]

# The server is there but serves no writes now; another node may have taken over.
_TURNED_AWAY = ("READONLY", "NOREPLICAS", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")


class Control(Protocol):
    """Who sent a batch, and is told how it went."""

    def answer(self, flight: Flight, reply: object) -> None:
        """Take what came back for a call."""
        ...

    def lost(self, flight: Flight, error: BaseException) -> None:
        """Note that a call's answer will not come."""
        ...

    def unsent(self, flight: Flight) -> None:
        """Note that a call never left."""
        ...

    def overdue(self, flight: Flight) -> None:
        """Give up a call."""
        ...


class Flight:
    """One batch under way, which is answered or fails, once."""

    __slots__ = (
        *("_answered", "_calls", "_failed", "_over"),
        *("entered", "gate", "lane", "nonce", "script", "task", "words"),
    )

    def __init__(
        self,
        calls: Control,
        gate: OutageGate,
        script: Script,
        words: tuple[Word, ...],
        nonce: bytes,
        answered: Answered,
        failed: Failed,
    ) -> None:
        self._calls = calls
        self._answered = answered
        self._failed = failed
        self._over = False
        self.gate = gate
        self.script = script
        self.words = words
        self.nonce = nonce
        self.entered = 0
        self.lane: Lane | None = None
        self.task: asyncio.Task[Any] | None = None

    def board(self, lane: Lane) -> None:
        """Go by a lane."""
        self.lane = lane
        try:
            lane.send(("EVALSHA", self.script.sha, *self.words), self._heard)
        except (UnicodeError, TypeError) as error:
            # It cannot be written down; those who come after it can.
            self._calls.unsent(self)
            self.fail(error)

    def _heard(self, reply: object) -> None:
        if self._over:
            return
        if isinstance(reply, NoScriptError) or _unknown_script(reply):
            # The one answer that proves that nothing ran, and so the only call that is repeated.
            cast("Lane", self.lane).send(("EVAL", self.script.text, *self.words), self._heard)
        elif isinstance(reply, (RedisError, OSError)) and not isinstance(reply, ResponseError):
            self._calls.lost(self, reply)
        else:
            self._calls.answer(self, reply)

    def answer(self, reply: list[Any]) -> None:
        """Hand on the reply."""
        if not self._over:
            self._over = True
            self._answered(reply)

    def fail(self, error: BaseException) -> None:
        """Hand on that there is none."""
        if not self._over:
            self._over = True
            self._failed(error)

    def give_up(self) -> None:
        """Wait no more."""
        if not self._over:
            self._over = True
            self._calls.overdue(self)


def turned_away(error: ResponseError, gate: OutageGate, entered: int) -> bool:
    """Whether the server serves no writes now; the gate is told how it went."""
    text = short(error)
    # Older servers wrap the code inside "Error running script", so the text is searched.
    if any(code in text for code in _TURNED_AWAY):
        gate.failed(text, entered)
        return True
    gate.succeeded()
    return False


def short(error: BaseException) -> str:
    """Get the first line of an error, for our own, with the server's word for it."""
    text = str(error).split("\n", 1)[0][:200]
    # The client takes it out where it has a class for it.
    code = getattr(error, "status_code", None)
    return f"{code} {text}" if code and not text.startswith(code) else text


def _unknown_script(reply: object) -> bool:
    return isinstance(reply, ResponseError) and str(reply).startswith("NOSCRIPT")
