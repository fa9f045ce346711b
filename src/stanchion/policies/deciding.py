"""What the policies share that decide in this process: selection, mode, advice, declaration."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypedDict

from pydantic import (
    Field,
    PrivateAttr,
)

from stanchion.decisions import Mode, OnOutage, Signal, Verdict
from stanchion.errors import ConfigError, PolicyFailed
from stanchion.policies.declared import DeclaredPolicy
from stanchion.policies.fields import Data, either, handed_out
from stanchion.policies.stats import Counters, PolicyStats

if TYPE_CHECKING:
    from stanchion.events import Event


class Declared(TypedDict, total=False):
    """The fields of every such policy beside `name` and `on`."""

    priority: int
    mode: Mode | Literal["enforce", "shadow", "off"]
    on_outage: OnOutage | Literal["veto", "admit"]
    on_veto: Signal | Literal["fail", "skip", "retry", "fallback"]
    advice: Data


class DecidingPolicy(DeclaredPolicy):
    """A policy that is declared, and decides by itself, without asking a store or a service.

    `mode` shadow reports vetoes and enforces none, and off is not asked. `on_outage` is the answer
    where deciding fails. `on_veto` is what a veto advises the orchestrator to do, and `advice` the
    data that goes with it, such as `{"model": "small"}` with fallback.
    """

    priority: int = 100
    mode: Annotated[Mode | Literal["enforce", "shadow", "off"], either(Mode)] = Mode.ENFORCE
    on_outage: Annotated[OnOutage | Literal["veto", "admit"], either(OnOutage)] = OnOutage.VETO
    on_veto: Annotated[Signal | Literal["fail", "skip", "retry", "fallback"], either(Signal)] = (
        Signal.FAIL
    )
    advice: Data = Field(default={})

    _passed: Verdict = PrivateAttr()
    _counters: Counters = PrivateAttr(default_factory=Counters)

    def __copy__(self) -> Self:
        """Get the same declaration with nothing counted."""
        fresh = super().__copy__()
        fresh._counters = Counters()  # noqa: SLF001 - of this very class
        return fresh

    @property
    def stats(self) -> PolicyStats:
        """What this policy has been asked and answered in this process."""
        return self._counters.stats

    def check(self) -> None:
        """Check what goes beyond single fields; raises ConfigError."""
        super().check()
        for field, refused in (("on_outage", OnOutage.LOCAL), ("on_veto", Signal.PROCEED)):
            if getattr(self, field) is refused:
                raise ConfigError.of(f"{self.owner}: {field}", refused.value, "not for this policy")
        self._passed = Verdict(self.name, allowed=True, enforced=self.enforced)

    @property
    def enforced(self) -> bool:
        """Whether its vetoes are followed."""
        return self.mode is not Mode.SHADOW

    def admits(self) -> Verdict:
        """Get the verdict that lets an event pass."""
        return self._passed

    def refuses(
        self,
        reason: str,
        *,
        detail: str | None = None,
        retry_after: float | None = None,
        signal: Signal | None = None,
        advice: Data | None = None,
    ) -> Verdict:
        """Get a veto; `signal` and `advice` come before what the policy declares."""
        return Verdict(
            self.name,
            allowed=False,
            reason=reason,
            retry_after=retry_after,
            enforced=self.enforced,
            detail=detail,
            signal=signal,
            advice=handed_out(self.advice if advice is None else advice),
        )

    def judged(self, answer: object, otherwise: str) -> Verdict:
        """Get the verdict that a function's answer stands for.

        None and true let pass, false vetoes with the reason `otherwise`, text is the reason of a
        veto, and a `Verdict` is itself, under this policy's name and mode.

        Raises:
            PolicyFailed: it is none of these.
        """
        if answer is None or answer is True:
            return self.admits()
        if answer is False:
            return self.refuses(otherwise)
        if isinstance(answer, str):
            return self.refuses(answer or otherwise)
        if isinstance(answer, Verdict):
            event = answer.event if self.enforced else None
            return replace(answer, policy=self.name, enforced=self.enforced, event=event)
        raise PolicyFailed(
            f"the answer is {type(answer).__name__}: expected None, a bool, a reason or a Verdict"
        )


class LocalPolicy(DecidingPolicy):
    """A policy that decides in this process, as `decide` says; what it answers is counted."""

    @abstractmethod
    async def decide(self, event: Event) -> Verdict:
        """Get the answer about one event."""

    async def evaluate(self, event: Event) -> Verdict:
        """Get whether the event may proceed."""
        return await self._counters.of(self.decide(event))


class ImmediatePolicy(LocalPolicy):
    """One that waits for nothing while it decides."""

    async def evaluate_by(self, event: Event, until: float) -> Verdict:
        """Get the same; any time is enough."""
        del until
        return await self.evaluate(event)
