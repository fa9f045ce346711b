"""`CircuitBreaker`: stop calling what keeps failing, for all workers together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, ClassVar, cast

from pydantic import Field, StrictInt

from stanchion.decisions import ColdStart, Outcome, Reason
from stanchion.durations import micros
from stanchion.errors import CircuitOpen, ConfigError, Vetoed
from stanchion.policies.base import BuiltInPolicy
from stanchion.store.keys import Kind

Duration = timedelta | float | str
_MOST_CALLS = 10_000
Failures = type[Exception] | tuple[type[Exception], ...] | Callable[..., Any]


class CircuitBreaker(BuiltInPolicy):
    """Vetoes while what is called keeps failing; every worker sees the same circuit.

    Results of all workers fall into one `window`, a duration or a number of calls. It trips when
    at least `minimum_calls` of them are in it and `failure_rate` of them failed, or
    `slow_call_rate` took `slow_call` or longer; or after `consecutive_failures`; with
    `min_reporters`, only once failures were seen by that many workers. It stays open for
    `open_for`, doubled each time that it reopens, up to `max_open_for` (default: not doubled),
    plus a random share up to `jitter` of that. Then `half_open_calls` probes are let through in
    the whole cluster; each holds a lease, so that a prober that dies gives its probe back. All of
    them succeeding closes the circuit, one failing opens it again. For `ramp_up` after closing, a
    share of calls growing from a tenth to all is let through.

    `failures` says which results are failures: exception types, or a predicate that gets the
    exception or the result and answers True, False or an `Outcome`. By default every `Exception`
    is one; cancellation never is.

    Raises:
        ConfigError: a field that cannot work; the text names it.
    """

    vetoed: ClassVar[type[Vetoed]] = CircuitOpen
    full: ClassVar[Reason] = Reason.CIRCUIT_OPEN
    cold_refused: ClassVar[Mapping[ColdStart, str]] = dict.fromkeys(
        (ColdStart.SPENT, ColdStart.PRORATED),
        "a circuit has no limit that could be used up; how the provider is, the next calls show",
    )

    failure_rate: float | None = Field(default=None, gt=0, le=1)
    minimum_calls: StrictInt = Field(default=10, ge=1, le=1_000_000)
    window: Duration | StrictInt = "30s"
    consecutive_failures: StrictInt | None = Field(default=None, ge=1, le=1_000_000)
    slow_call: Duration | None = None
    slow_call_rate: float | None = Field(default=None, gt=0, le=1)
    open_for: Duration = "30s"
    max_open_for: Duration | None = None
    jitter: float = Field(default=0.0, ge=0, le=1)
    half_open_calls: StrictInt = Field(default=1, ge=1, le=10_000)
    lease: Duration = "60s"
    min_reporters: StrictInt = Field(default=1, ge=1, le=64)
    ramp_up: Duration | None = None
    failures: Failures | None = None

    @property
    def kind(self) -> Kind:
        """The kind of limit that the script is to apply."""
        return Kind.CIRCUIT

    def declaration(self, tier: str = "*") -> dict[str, object]:
        """Get the declaration as the script reads it."""
        del tier

        def us(field: str) -> int:
            value: object = getattr(self, field)
            return 0 if value is None else micros(value, field=f"{self.owner}: {field}")

        spec: dict[str, object] = {
            "kind": self.kind.script_name,
            "minimum_calls": self.minimum_calls,
            "open_for": us("open_for"),
            "max_open_for": us("max_open_for"),
            "jitter": self.jitter,
            "half_open_calls": self.half_open_calls,
            "lease": us("lease"),
            "reporters": self.min_reporters,
            "ramp_up": us("ramp_up"),
        }
        if isinstance(self.window, int):
            spec["calls"] = self.window
        else:
            spec["window"] = us("window")
        if self.failure_rate is not None:
            spec["failure_rate"] = self.failure_rate
        if self.consecutive_failures is not None:
            spec["consecutive"] = self.consecutive_failures
        if self.slow_call is not None:
            spec["slow_call"] = us("slow_call")
            spec["slow_rate"] = self.slow_call_rate
        return spec

    def check(self) -> None:
        """Check what goes beyond single fields."""
        owner = self.owner
        if self.failure_rate is None and self.consecutive_failures is None and not self.slow_call:
            raise ConfigError(
                f"{owner}: nothing would ever trip it: give failure_rate, consecutive_failures, or "
                "slow_call with slow_call_rate"
            )
        if (self.slow_call is None) != (self.slow_call_rate is None):
            raise ConfigError(f"{owner}: slow_call and slow_call_rate need each other")
        if isinstance(self.window, int) and not self.minimum_calls <= self.window <= _MOST_CALLS:
            raise ConfigError.of(
                f"{owner}: window",
                self.window,
                f"a number of calls from minimum_calls={self.minimum_calls} to 10000, or a "
                'duration such as "30s"',
            )
        spec = self.declaration()
        if self.max_open_for is not None and int(str(spec["max_open_for"])) < int(
            str(spec["open_for"])
        ):
            raise ConfigError.of(f"{owner}: max_open_for", self.max_open_for, "below open_for")
        super().check()

    def classify(self, error: BaseException | None) -> Outcome:
        """Get what an exception that ended a guarded block means to this breaker."""
        default = super().classify(error)
        if default is not Outcome.FAILURE or self.failures is None:
            return default
        if isinstance(self.failures, tuple | type):
            # The call was answered, if with an error that is no failure of the provider.
            kinds: tuple[type[Exception], ...] = cast("Any", self).failures
            return Outcome.FAILURE if isinstance(error, kinds) else Outcome.SUCCESS
        return self._ask_predicate(error)

    def judge(self, result: object) -> Outcome:
        """Get what the result of a guarded call means to this breaker."""
        if self.failures is None or isinstance(self.failures, tuple | type):
            return Outcome.SUCCESS
        return self._ask_predicate(result)

    def _ask_predicate(self, value: object) -> Outcome:
        predicate = self.failures
        assert callable(predicate)
        answer: object = predicate(value)
        if isinstance(answer, Outcome):
            return answer
        return Outcome.FAILURE if answer else Outcome.SUCCESS
