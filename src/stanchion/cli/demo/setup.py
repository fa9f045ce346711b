"""What is settled before anything starts: the load, its limits, and each worker's part."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stanchion import ConfigError
from stanchion.cli.demo.derive import derive
from stanchion.cli.demo.plan import Job, Limits, Outage
from stanchion.cli.demo.trace import read_trace

if TYPE_CHECKING:
    from collections.abc import Generator

    from stanchion.cli.demo.trace import Trace

_SECONDS = 12.0
_TRACE_SECONDS = 15.0
_LANES = 12  # pipelines at once, over all workers


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for; `seconds` and `speed` None for what suits the load."""

    url: str = "embedded://"
    workers: int = 4
    seconds: float | None = None
    trace: Path | None = None
    speed: float | None = None
    logs: Path | None = None
    as_json: bool = False
    keep: bool = False
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Setup:
    """A load and its limits; `story` says where they come from, and `ends` when it is to stop.

    `ends` is None where the load ends by itself, after about `seconds`.
    """

    limits: Limits
    seconds: float
    ends: float | None
    outage: Outage
    story: tuple[str, ...] = ()
    trace: Trace | None = None

    @classmethod
    def of(cls, options: Options) -> Setup:
        """Get the setup that was asked for.

        Raises:
            ConfigError: the trace cannot be read, or is no trace.
        """
        if options.trace is None:
            seconds = options.seconds or _SECONDS
            return cls(Limits(), seconds, seconds, Outage.within(seconds))
        recorded = read_trace(options.trace)
        speed = options.speed or max(1.0, recorded.seconds / _TRACE_SECONDS)
        trace = recorded.sped_up(speed)
        if options.seconds is not None:
            trace = trace.until(options.seconds)
        derived = derive(trace)
        seconds = max(1.0, trace.seconds)
        outage = Outage.within(seconds, start=0.6)
        heading = (
            f"{len(trace.calls):,} calls, recorded over {trace.seconds * speed:,.0f} s, come "
            f"{speed:,.4g} times faster: in {trace.seconds:,.1f} s. "
            "From them the limits, so that each will refuse some:"
        )
        story = (heading, *(f"  {reason}" for reason in derived.reasons))
        return cls(derived.limits, seconds, None, outage, story, trace)

    def jobs(
        self, options: Options, *, url: str, namespace: str, endpoint: str, home: Path
    ) -> list[Job]:
        """Get what each worker is told."""
        return [
            Job(
                worker=number,
                url=url,
                namespace=namespace,
                endpoint=endpoint,
                journal=home / f"worker-{number}.jsonl",
                temporary=options.logs is None,
                seed=options.seed,
                lanes=max(1, round(_LANES / options.workers)),
                limits=self.limits,
                calls=None if self.trace is None else self.trace.share(number, options.workers),
                largest=0 if self.trace is None else self.trace.largest,
            )
            for number in range(1, options.workers + 1)
        ]


@contextmanager
def logs_directory(logs: Path | None) -> Generator[Path]:
    """Get a directory for the workers' logs: the one asked for, or one that is removed at the end.

    Raises:
        ConfigError: it cannot be made, or has logs of another run in it.
    """
    if logs is None:
        home = Path(tempfile.mkdtemp(prefix="stanchion-demo-"))
        try:
            yield home
        finally:
            shutil.rmtree(home, ignore_errors=True)
        return
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError.of("--logs", str(logs), error.strerror or "cannot be made") from error
    if any(logs.glob("worker-*.jsonl")):
        raise ConfigError.of("--logs", str(logs), "it has logs of another run in it")
    yield logs
