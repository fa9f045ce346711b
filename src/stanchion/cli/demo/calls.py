"""One guarded call: asked for, made, charged at its real cost, and written down."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import ClientError

from stanchion import Outcome, Signal, StanchionError, Vetoed
from stanchion.cli.demo.endpoint import CHAT, SEARCH, ChatReply, ChatRequest
from stanchion.cli.demo.records import Asked, Ended, Settled, micros_of, now_us
from stanchion.events import (
    Event,
    LLMPromptSent,
    LLMResponseReceived,
    ToolCalled,
    ToolCompleted,
)

if TYPE_CHECKING:
    from datetime import datetime

    from aiohttp import ClientSession

    from stanchion import EventBus, Permit
    from stanchion.cli.demo.plan import BuiltIn
    from stanchion.cli.demo.records import Journal


class Stopped(Exception):
    """The run is over; nothing new begins."""


class ProviderFailed(StanchionError):
    """The endpoint answered with an error, or not at all."""


@dataclass(slots=True)
class Counts:
    """What this worker has counted so far; `admitted` and `vetoed` by "policy subject"."""

    calls: int = 0
    refused: int = 0
    admitted: Counter[str] = field(default_factory=Counter[str])
    vetoed: Counter[str] = field(default_factory=Counter[str])
    in_flight: int = 0
    runs: int = 0


class Caller:
    """Makes the calls of one worker: guarded, told to the observers, and kept in its journal."""

    def __init__(
        self, bus: EventBus, http: ClientSession, journal: Journal, policies: tuple[BuiltIn, ...]
    ) -> None:
        self.counts = Counts()
        self._bus = bus
        self._http = http
        self._journal = journal
        self._policies = {policy.name: policy for policy in policies}
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Let nothing new begin."""
        self._stop.set()

    def check_running(self) -> None:
        """Raise Stopped when the run is over."""
        if self._stop.is_set():
            raise Stopped

    async def pause(self, seconds: float) -> None:
        """Wait; raises Stopped at once when the run is over."""
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return
        raise Stopped

    def notify(self, event: Event) -> None:
        """Tell the observers."""
        self._bus.notify(event)

    async def chat(self, prompt: LLMPromptSent, *, generate: int | None = None) -> ChatReply:
        """Make one model call, if the policies let it through.

        Raises:
            Vetoed: they did not.
            ProviderFailed: the provider's own error, which counts against its circuit.
            Stopped: the run is over.
        """
        self.check_running()
        before, began = now_us(), asyncio.get_running_loop().time()
        reply: ChatReply | None = None
        try:
            async with self._bus.guard(prompt) as permit:
                self._admitted(prompt, permit, before)
                self._bus.notify(prompt)
                try:
                    reply = await self._send(prompt, generate)
                    # Reported before the failure is raised: what was billed is known to be nothing.
                    permit.charge(tokens=reply.usage.total_tokens)
                    if reply.error is not None:
                        raise ProviderFailed(reply.error)
                finally:
                    failed = reply is None or reply.error is not None
                    tokens = None if reply is None else reply.usage.total_tokens
                    self._ended(prompt, failed=failed, tokens=tokens)
        except Vetoed as veto:
            self._vetoed(prompt, veto, before)
            raise
        except ProviderFailed as error:
            self._journal.write(Settled(call=prompt.id, at_us=now_us()))
            self._bus.notify(self._response(prompt, began, reply, str(error)))
            raise
        assert reply is not None
        self._journal.write(Settled(call=prompt.id, at_us=now_us()))
        self._bus.notify(self._response(prompt, began, reply, None))
        return reply

    async def tool(self, called: ToolCalled) -> int:
        """Make one tool call, if the policies let it through; raises as `chat` does."""
        self.check_running()
        before, began = now_us(), asyncio.get_running_loop().time()
        results: int | None = None
        try:
            async with self._bus.guard(called) as permit:
                self._admitted(called, permit, before)
                self._bus.notify(called)
                try:
                    async with self._http.get(SEARCH, params={"q": called.id}) as answer:
                        results = int((await answer.json())["results"])
                except (ClientError, TimeoutError) as error:
                    raise ProviderFailed(str(error) or type(error).__name__) from error
                finally:
                    self._ended(called, failed=results is None)
        except Vetoed as veto:
            self._vetoed(called, veto, before)
            raise
        assert results is not None
        duration = asyncio.get_running_loop().time() - began
        self._bus.notify(
            ToolCompleted(
                tool=called.tool,
                duration=duration,
                call_id=called.id,
                result=results,
                pipeline=called.pipeline,
                run_id=called.run_id,
                node=called.node,
            )
        )
        return results

    async def _send(self, prompt: LLMPromptSent, generate: int | None) -> ChatReply:
        request = ChatRequest(
            model=prompt.model,
            prompt_tokens=prompt.prompt_tokens or 0,
            max_tokens=prompt.max_tokens or 0,
            seed=f"{prompt.run_id} {prompt.node} {prompt.attempt}",
            generate=generate,
        )
        try:
            async with self._http.post(CHAT, data=request.model_dump_json()) as answer:
                return ChatReply.model_validate_json(await answer.read())
        except (ClientError, TimeoutError, ValueError) as error:
            raise ProviderFailed(str(error) or type(error).__name__) from error

    def _response(
        self, prompt: LLMPromptSent, began: float, reply: ChatReply | None, error: str | None
    ) -> LLMResponseReceived:
        return LLMResponseReceived(
            model=prompt.model,
            duration=asyncio.get_running_loop().time() - began,
            call_id=prompt.id,
            tokens=0 if reply is None else reply.usage.total_tokens,
            error=error,
            pipeline=prompt.pipeline,
            run_id=prompt.run_id,
            node=prompt.node,
            tenant=prompt.tenant,
        )

    # ------------------------------------------------------------------------- what is written

    def _admitted(self, event: Event, permit: Permit, before: int) -> None:
        names = tuple(hold.policy for hold in permit.holds)
        self.counts.calls += 1
        self.counts.in_flight += 1
        self._journal.write(self._asked(event, before, permit.admitted_at, names))

    def _vetoed(self, event: Event, veto: Vetoed, before: int) -> None:
        self.counts.refused += 1
        decision = veto.decision
        names = tuple(verdict.policy for verdict in decision.verdicts)
        vetoes = tuple((verdict.policy, verdict.reason) for verdict in decision.vetoes)
        asked = self._asked(event, before, decision.decided_at, names, vetoes, decision.signal)
        self._journal.write(asked)

    def _asked(
        self,
        event: Event,
        before: int,
        at: datetime | None,
        names: tuple[str, ...],
        vetoes: tuple[tuple[str, str], ...] = (),
        signal: Signal = Signal.PROCEED,
    ) -> Asked:
        fields = fields_of(event)
        refused = {name for name, _ in vetoes}
        for name in names:
            label = label_of(self._policies[name], fields)
            if not vetoes:
                self.counts.admitted[label] += 1
            elif name in refused:
                self.counts.vetoed[label] += 1
        return Asked(
            call=event.id,
            event=event.event_type,
            fields=fields,
            policies=names,
            vetoes=vetoes,
            signal=signal,
            tokens=event.tokens if isinstance(event, LLMPromptSent) else 0,
            attempt=event.attempt if isinstance(event, LLMPromptSent | ToolCalled) else 1,
            before_us=before,
            after_us=now_us(),
            at_us=None if at is None else micros_of(at),
        )

    def _ended(self, event: Event, *, failed: bool, tokens: int | None = None) -> None:
        self.counts.in_flight -= 1
        outcome = Outcome.FAILURE if failed else Outcome.SUCCESS
        self._journal.write(Ended(call=event.id, at_us=now_us(), outcome=outcome, tokens=tokens))


def fields_of(event: Event) -> dict[str, str]:
    """Get the fields of a call that policies count by."""
    values = {name: getattr(event, name, None) for name in ("tenant", "model", "tool")}
    return {name: value for name, value in values.items() if isinstance(value, str)}


def label_of(policy: BuiltIn, fields: dict[str, str]) -> str:
    """Get the name of one policy's subject, as the tables and reports have it."""
    return " ".join([policy.name, ":".join(fields[name] for name in policy.fields)])
