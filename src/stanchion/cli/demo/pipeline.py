"""An agent at work: a pipeline of waves and nodes, each a model or a tool call."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, TypedDict

from stanchion import Reason, Signal, Vetoed
from stanchion.cli.demo.calls import Caller, ProviderFailed, Stopped
from stanchion.cli.demo.plan import FALLBACK, MODEL, TENANTS, TOOL
from stanchion.events import (
    LLMPromptSent,
    NodeCompleted,
    NodeFailed,
    NodeSkipped,
    NodeStarted,
    PipelineCompleted,
    PipelineFailed,
    PipelineStarted,
    ToolCalled,
    WaveCompleted,
    WaveStarted,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stanchion import Decision

NAME = "research"
WAVES = (
    ("plan",),
    ("search-1", "search-2"),
    ("read-1", "read-2", "read-3"),
    ("write",),
)
_MAX_TOKENS = 320
_ATTEMPTS = 4
_LOOK_AGAIN = 0.1  # seconds: a slot is often free long before the lease of its holder ends
_LONGEST_WAIT = 2.0
_A_BIT = 0.001  # our timers may be early


class NodeGivenUp(Exception):
    """A node could not be done; `skipped` when a policy advised to pass it over."""

    def __init__(self, why: str, policy: str | None, *, skipped: bool) -> None:
        super().__init__(why)
        self.policy = policy
        self.skipped = skipped


class Lane:
    """Runs one pipeline after the other, until the run is over; the same calls for one seed."""

    def __init__(self, caller: Caller, *, worker: int, lane: int, seed: int) -> None:
        self._caller = caller
        self._name = f"w{worker}-{lane}"
        self._tenant = TENANTS[(worker + lane) % len(TENANTS)]
        self._chance = random.Random(f"{seed} {self._name}")

    async def run(self) -> None:
        """Run pipelines until Stopped."""
        number = 0
        try:
            await self._caller.pause(self._chance.uniform(0.0, 0.3))
            while True:
                number += 1
                await _Run(self._caller, self._tenant, f"{self._name}-{number}", self._chance).run()
                self._caller.counts.runs += 1
                await self._caller.pause(self._chance.uniform(0.15, 0.45))
        except Stopped:
            return


class _Common(TypedDict):
    pipeline: str
    run_id: str
    tenant: str


class _Run:
    def __init__(self, caller: Caller, tenant: str, run_id: str, chance: random.Random) -> None:
        self._caller = caller
        self._common = _Common(pipeline=NAME, run_id=run_id, tenant=tenant)
        # Drawn beforehand, so that what one call meets changes nothing about the next.
        self._prompts = {node: chance.randint(150, 900) for wave in WAVES for node in wave}
        self._ended = {"completed": 0, "failed": 0, "skipped": 0}

    async def run(self) -> None:
        tell, began = self._caller.notify, _time()
        nodes = sum(len(wave) for wave in WAVES)
        tell(PipelineStarted(**self._common, waves=len(WAVES), nodes=nodes))
        for number, wave in enumerate(WAVES):
            tell(WaveStarted(**self._common, wave=number, nodes=wave))
            wave_began = _time()
            # All nodes of a wave end, one way or another, before anything is raised.
            ends = await asyncio.gather(
                *(self._node(node, number) for node in wave), return_exceptions=True
            )
            for end in ends:
                if isinstance(end, BaseException):
                    raise end
            tell(
                WaveCompleted(
                    **self._common, wave=number, nodes=wave, duration=_time() - wave_began
                )
            )
            if self._ended["failed"]:
                error = "a node failed"
                tell(PipelineFailed(**self._common, error=error, duration=_time() - began))
                return
        tell(
            PipelineCompleted(
                **self._common,
                duration=_time() - began,
                nodes_completed=self._ended["completed"],
                nodes_skipped=self._ended["skipped"],
            )
        )

    async def _node(self, node: str, wave: int) -> None:
        tell, began = self._caller.notify, _time()
        tell(NodeStarted(**self._common, node=node, wave=wave))
        work = self._search if node.startswith("search") else self._think
        try:
            await work(node)
        except NodeGivenUp as error:
            if error.skipped:
                self._ended["skipped"] += 1
                tell(
                    NodeSkipped(
                        **self._common,
                        node=node,
                        wave=wave,
                        reason=str(error),
                        policy=error.policy,
                    )
                )
                return
            self._ended["failed"] += 1
            tell(
                NodeFailed(
                    **self._common,
                    node=node,
                    wave=wave,
                    error=str(error),
                    duration=_time() - began,
                )
            )
            return
        self._ended["completed"] += 1
        tell(NodeCompleted(**self._common, node=node, wave=wave, duration=_time() - began))

    async def _search(self, node: str) -> None:
        async def search(attempt: int, _: str) -> None:
            called = ToolCalled(
                **self._common, node=node, tool=TOOL, attempt=attempt, arguments={"query": node}
            )
            await self._caller.tool(called)

        await self._persist(search)

    async def _think(self, node: str) -> None:
        prompt_tokens = self._prompts[node]

        async def think(attempt: int, model: str) -> None:
            prompt = LLMPromptSent(
                **self._common,
                node=node,
                model=model,
                attempt=attempt,
                tokens=prompt_tokens + _MAX_TOKENS,
                prompt_tokens=prompt_tokens,
                max_tokens=_MAX_TOKENS,
            )
            await self._caller.chat(prompt)

        await self._persist(think)

    async def _persist(self, call: Callable[[int, str], Awaitable[None]]) -> None:
        """Make a call, and do what a veto advises: wait and retry, take another model, or skip."""
        model, why, policy = MODEL, "", None
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await call(attempt, model)
            except ProviderFailed as error:
                why, policy = str(error), None
                await self._caller.pause(0.1 * attempt)
            except Vetoed as veto:
                decision = veto.decision
                why, policy = str(veto), decision.policy
                if decision.signal is Signal.SKIP:
                    raise NodeGivenUp(why, policy, skipped=True) from veto
                if decision.signal is Signal.FALLBACK and model != FALLBACK:
                    model = FALLBACK
                elif (wait := patience(decision)) is None:
                    break
                else:
                    await self._caller.pause(wait)
            else:
                return
        raise NodeGivenUp(why, policy, skipped=False)


def patience(decision: Decision) -> float | None:
    """Get the seconds to wait before asking again; None where that is too long, or never."""
    longest = 0.0
    for veto in decision.vetoes:
        if veto.retry_after is None:
            return None
        slot = veto.reason == Reason.NO_FREE_SLOT
        longest = max(longest, min(veto.retry_after, _LOOK_AGAIN) if slot else veto.retry_after)
    return longest + _A_BIT if longest <= _LONGEST_WAIT else None


def _time() -> float:
    return asyncio.get_running_loop().time()
