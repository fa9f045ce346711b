"""What one run of the demo is: its policies, its outage, and what workers and parent tell."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from stanchion import CircuitBreaker, Concurrency, Quota, RateLimit, Signal
from stanchion.cli.reading import span
from stanchion.durations import seconds
from stanchion.events import LLMPromptSent, ToolCalled

MODEL = "large"
FALLBACK = "small"
TENANTS = ("acme", "globex")
TOOL = "search"
EVERYONE = "*"  # the plan of subjects that have no plan

Stage = Literal["ready", "busy", "idle"]

BuiltIn = RateLimit | Quota | Concurrency | CircuitBreaker


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Value):
    """The numbers of the policies; times in seconds."""

    calls: int = 14
    calls_burst: int = 10
    tokens: int = 21_000
    tokens_per: float = 3.0
    in_flight: int = 6
    searches: int = 28
    searches_burst: int = 10
    failure_rate: float = 0.5
    minimum_calls: int = 8
    window: float = 1.0
    open_for: float = 1.2
    half_open_calls: int = 2
    lease: float = 5.0

    def policies(self) -> tuple[BuiltIn, ...]:
        """Get the policies, in the order of asking.

        The breaker stands first, so that its advice, another model, is the one that is followed.
        """
        calls = LLMPromptSent
        return (
            CircuitBreaker(
                name="provider",
                on=calls,
                by=("model",),
                failure_rate=self.failure_rate,
                minimum_calls=self.minimum_calls,
                window=self.window,
                open_for=self.open_for,
                half_open_calls=self.half_open_calls,
                lease=self.lease,
                on_veto=Signal.FALLBACK,
            ),
            RateLimit(
                name="calls",
                on=calls,
                by=("tenant", "model"),
                limit=self.calls,
                per="1s",
                burst=self.calls_burst,
                on_veto=Signal.RETRY,
            ),
            Quota(
                name="tokens",
                on=calls,
                by=("tenant",),
                limit=self.tokens,
                per=self.tokens_per,
                cost="tokens",
                lease=self.lease,
                on_veto=Signal.SKIP,
            ),
            Concurrency(
                name="in-flight",
                on=calls,
                by=("model",),
                limit=self.in_flight,
                lease=self.lease,
                on_veto=Signal.RETRY,
            ),
            RateLimit(
                name="searches",
                on=ToolCalled,
                by=("tool",),
                limit=self.searches,
                per="1s",
                burst=self.searches_burst,
                on_veto=Signal.RETRY,
            ),
        )


class Call(_Value):
    """One recorded call: when it is due, in seconds from the start, and its tokens."""

    due: float
    prompt: int
    generated: int


class Outage(_Value):
    """When the provider of one model fails, in seconds from the start."""

    model: str = MODEL
    start: float
    end: float

    @classmethod
    def within(cls, seconds: float, *, start: float = 0.35) -> Outage:
        """Get an outage that begins at a share of a run: a quarter of it long, at most 3 s."""
        begins = start * seconds
        return cls(start=begins, end=begins + min(3.0, 0.25 * seconds))


class Job(_Value):
    """What one worker process is told: the first line of its standard input."""

    worker: int
    url: str
    namespace: str
    endpoint: str
    journal: Path
    temporary: bool
    seed: int
    lanes: int
    limits: Limits
    calls: tuple[Call, ...] | None = None
    largest: int = 0


class Order(_Value):
    """A line from the parent: what a worker shall do next.

    `go` begins the load; `stop` ends it, with what is in flight; `finish` closes the worker, once
    it has heard of the circuits' changes in `seqs`.
    """

    do: Literal["go", "stop", "finish"]
    seqs: dict[str, int] = {}


class Report(_Value):
    """A line to the parent: the worker's stage, and its counts so far.

    `calls` were admitted and `refused` vetoed; `admitted` and `vetoed` are by "policy subject".
    `learned` has the seconds that news of each circuit's state took to arrive.
    """

    at: Stage
    calls: int = 0
    refused: int = 0
    admitted: dict[str, int] = {}
    vetoed: dict[str, int] = {}
    in_flight: int = 0
    runs: int = 0
    learned: dict[str, float] = {}


def described(policy: BuiltIn) -> str:
    """Get a policy's limit in a few words."""
    if isinstance(policy, CircuitBreaker):
        return f"opens at {policy.failure_rate or 0:.0%} of {policy.minimum_calls}+ failed"
    limit = f"{policy.limit_of(EVERYONE):,}"
    if isinstance(policy, Concurrency):
        return f"{limit} at once"
    per = span(seconds(policy.per, field="per"))
    burst = f", burst {policy.capacity_of(EVERYONE):,}" if isinstance(policy, RateLimit) else ""
    return f"{limit} per {per}{burst}"
