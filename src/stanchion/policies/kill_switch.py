"""`KillSwitch`: one command stops events in every worker, with who and why."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context
from dataclasses import replace
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import PrivateAttr

from stanchion.decisions import OnOutage, Reason
from stanchion.durations import seconds
from stanchion.errors import ConfigError, StanchionError, StoreUnavailable
from stanchion.events import Event, PolicyChanged, PolicyFailed, Selector
from stanchion.policies.deciding import DecidingPolicy
from stanchion.policies.fields import subject_text
from stanchion.store.halts import Halt, Halts, checked
from stanchion.store.keys import escape

if TYPE_CHECKING:
    from stanchion.decisions import Verdict
    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Store

_log = logging.getLogger("stanchion.bus")
HALTED: Final = "halted"
_PAUSE: Final = 0.2  # seconds until a subscription that failed is tried again


class _Known:
    """What was halted at some time from `read_at`, when it was asked for, to `told_at`."""

    __slots__ = ("halts", "read_at", "told_at")

    def __init__(self, halts: tuple[Halt, ...], read_at: float, told_at: float) -> None:
        self.halts, self.read_at, self.told_at = halts, read_at, told_at

    def stopping(self, event: Event, now: float) -> tuple[Halt, float | None] | None:
        """Get the first halt that stops an event, and in how many seconds that ends."""
        for halt in self.halts:
            left = None if halt.ends_in is None else halt.ends_in - (now - self.told_at)
            if (left is None or left > 0) and _stops(halt, event):
                return halt, left
        return None


class KillSwitch(DecidingPolicy):
    """Vetoes what `halt` stops, in every worker of the namespace that has such a policy.

    A worker hears of a halt at once, and in any case admits nothing on what it read longer than
    `max_age` ago: it reads again first. When that fails it vetoes, or with `on_outage="admit"`
    lets pass. It is asked before other policies (`priority` 0), so neither leases nor cached
    answers of those come before it. One switch belongs to one bus.

    Raises:
        ConfigError: a field that cannot work; the text names it.
    """

    on: Selector = "*"
    priority: int = 0
    max_age: timedelta | float | str = 0.5

    _max_age: float = PrivateAttr(default=0.5)
    _halts: Halts | None = PrivateAttr(default=None)
    _notify: Callable[[Event], None] | None = PrivateAttr(default=None)
    _known: _Known | None = PrivateAttr(default=None)
    _changed_at: float = PrivateAttr(default=-math.inf)
    _told: tuple[Halt, ...] | None = PrivateAttr(default=None)
    _reading: asyncio.Task[Any] | None = PrivateAttr(default=None)
    _listening: asyncio.Task[Any] | None = PrivateAttr(default=None)
    _tasks: set[asyncio.Task[Any]] = PrivateAttr(default_factory=set[asyncio.Task[Any]])
    _is_closed: bool = PrivateAttr(default=False)

    def check(self) -> None:
        """Check what goes beyond single fields; raises ConfigError."""
        super().check()
        self._max_age = seconds(self.max_age, field=f"{self.owner}: max_age")

    def attach(self, store: Store, keyspace: Keyspace, notify: Callable[[Event], None]) -> None:
        """Take the store of a bus; buses do so with their policies.

        Raises:
            ConfigError: it belongs to another bus that was not closed.
        """
        if self._halts is not None and not self._is_closed:
            raise ConfigError(f"{self.owner} is on another bus already: make one for each bus")
        self._halts, self._notify, self._is_closed = Halts(store, keyspace), notify, False

    async def close(self) -> None:
        """Stop listening; a bus that is opened again, or another one, can ask it again."""
        self._is_closed, self._known, self._listening, self._reading = True, None, None, None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------------------------- commands

    async def halt(
        self,
        on: str,
        *,
        who: str,
        why: str,
        last: timedelta | float | str | None = None,
        **by: object,
    ) -> bool:
        """Stop events whose type matches `on`, in every worker; False if they were already.

        `by` narrows it to events with these values of their fields, such as `tenant="acme"`. It
        lasts until `resume`, or for the duration `last`. A halt of the same `on` and `by` takes the
        place of the earlier one.

        Raises:
            ConfigError: a text is empty or too long, `on`, `who` or `why` has control characters,
                or `last` is no duration.
            StoreUnavailable: Redis did not answer; whether it is halted is not known.
        """
        halt = checked(on, who, why, by)
        ends = None if last is None else seconds(last, field="halt: last")
        try:
            return await self._attached().halt(halt, ends)
        finally:
            self._forget()

    async def resume(self, on: str | None = None, **by: object) -> int:
        """Let go on what was halted with this `on` and `by`, without `on` all; get how many.

        Raises:
            StoreUnavailable: Redis did not answer; whether it goes on is not known.
        """
        name = "" if on is None else checked(on, "-", "-", by).name
        try:
            return await self._attached().resume(name)
        finally:
            self._forget()

    async def halted(self) -> tuple[Halt, ...]:
        """Get what is halted now, the oldest first.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        return await self._attached().read()

    # -------------------------------------------------------------------------------- deciding

    async def evaluate(self, event: Event) -> Verdict:
        """Get whether an event is halted, on what was read no longer than `max_age` ago."""
        return await self.evaluate_by(event, math.inf)

    async def evaluate_by(self, event: Event, until: float) -> Verdict:
        """Do the same by the time `until` of the loop; what is not read by then is not known."""
        return await self._counters.of(self._decided(event, until))

    async def _decided(self, event: Event, until: float) -> Verdict:
        loop = asyncio.get_running_loop()
        if self._listening is None:
            self._is_closed = False
            self._listening = self._begin(self._listen(self._attached()))
        known = self._known
        if known is None or loop.time() - known.read_at > self._max_age:
            try:
                async with asyncio.timeout_at(None if until == math.inf else until):
                    known = await self._read()
                    if loop.time() - known.read_at > self._max_age:
                        # It was under way already, and its answer came long ago.
                        known = await self._read()
            except StanchionError as error:
                return self._unknown(event, str(error))
            except TimeoutError:
                return self._unknown(event, "Redis did not answer within the deadline")
            if loop.time() - known.read_at > self._max_age:
                return self._unknown(event, f"Redis took longer than {self._max_age:g} s")
        found = known.stopping(event, loop.time())
        if found is None:
            return self.admits()
        halt, left = found
        return self.refuses(
            HALTED, detail=f"{halt.name}, by {halt.who}: {halt.why}", retry_after=left
        )

    def _unknown(self, event: Event, detail: str) -> Verdict:
        if self._notify is not None:
            failed = PolicyFailed(
                policy=self.name,
                error=detail,
                error_type=StoreUnavailable.__name__,
                asked_type=event.event_type,
                asked_id=event.id,
                pipeline=event.pipeline,
                run_id=event.run_id,
                node=event.node,
                tenant=event.tenant,
            )
            self._notify(failed)
        if self.on_outage is OnOutage.ADMIT:
            return replace(self.admits(), reason=Reason.STORE_UNAVAILABLE, detail=detail)
        return self.refuses(Reason.STORE_UNAVAILABLE, detail=detail)

    async def _read(self) -> _Known:
        """Read what is halted, once for all who want to know at the same time."""
        if self._reading is None or self._reading.done():
            self._reading = self._begin(self._refresh(self._attached()))
        return await asyncio.shield(self._reading)

    def _begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        # In an empty context: it outlives whatever run happens to ask first.
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # Whoever waits for it hears of its failure; and there may be nobody by then.
        _ = task.cancelled() or task.exception()

    async def _refresh(self, halts: Halts) -> _Known:
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            fresh = _Known(await halts.read(), began, clock())
        finally:
            self._counters.called(clock() - began)
        # What was read before the last change that was heard of is out of date.
        if began >= self._changed_at:
            self._known = fresh
            told, self._told = self._told, fresh.halts
            if told is not None:
                self._tell(told, fresh.halts)
        elif self._told is None:
            self._told = fresh.halts
        return fresh

    def _tell(self, before: tuple[Halt, ...], after: tuple[Halt, ...]) -> None:
        old, new = ({halt.name: halt for halt in halts} for halts in (before, after))
        for change, halts in (
            ("halted", [new[name] for name in new.keys() - old.keys()]),
            ("resumed", [old[name] for name in old.keys() - new.keys()]),
        ):
            for halt in halts:
                _log.info("%s: %s by %s: %s", change, halt.name, halt.who, halt.why)
                if self._notify is not None:
                    told: dict[str, Any] = {"on": halt.on, "by": dict(halt.by)}
                    told |= {"who": halt.who, "why": halt.why}
                    self._notify(PolicyChanged(policy=self.name, change=change, metadata=told))

    async def _listen(self, halts: Halts) -> None:
        """Read again at every change, and after every (re)connection."""
        while True:
            try:
                async with halts.changes() as messages:
                    async for _ in messages:
                        self._forget()
                        await self._after_change()
            # What is read before each decision does not depend on it.
            except Exception as error:  # noqa: BLE001
                _log.warning("cannot listen for halts: %s", type(error).__name__)
            await asyncio.sleep(_PAUSE)

    def _forget(self) -> None:
        """Have it read again before anything is admitted."""
        self._known = self._reading = None
        self._changed_at = asyncio.get_running_loop().time()

    async def _after_change(self) -> None:
        try:
            await self._read()
        except StanchionError as error:
            _log.warning("halts are read when the next event is asked about: %s", error)

    def _attached(self) -> Halts:
        if self._halts is None:
            raise ConfigError(f"{self.owner} is on no open bus")
        return self._halts


def _stops(halt: Halt, event: Event) -> bool:
    if not fnmatchcase(event.event_type, halt.on):
        return False
    # As keys tell them apart: however its accents are written, a tenant is one tenant.
    return all(_is(_value(event, field), value) for field, value in halt.by.items())


def _is(found: str | None, wanted: str) -> bool:
    return found is not None and (found == wanted or escape(found) == escape(wanted))


def _value(event: Event, path: str) -> str | None:
    value: object = event
    for name in path.split("."):
        if isinstance(value, Mapping):
            value = cast("Mapping[str, object]", value).get(name)
        else:
            value = getattr(value, name, None)
    try:
        return subject_text("halt", path, value)
    except ConfigError:
        return str(value)
