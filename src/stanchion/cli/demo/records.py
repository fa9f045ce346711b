"""What a worker writes down about its own calls, a JSON line a record; the summary reads it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from stanchion import CircuitState, Outcome, Signal, StanchionError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Asked(_Record):
    """One decision: times in microseconds, `at_us` by the server's clock, the others by ours.

    `policies` are those that were asked, `vetoes` those that refused, with their reasons. `tokens`
    is the estimate that was to be reserved.
    """

    record: Literal["asked"] = "asked"
    call: str
    event: str
    fields: dict[str, str]
    policies: tuple[str, ...]
    vetoes: tuple[tuple[str, str], ...] = ()
    signal: Signal = Signal.PROCEED
    tokens: int = 0
    attempt: int = 1
    before_us: int
    after_us: int
    at_us: int | None

    @property
    def allowed(self) -> bool:
        """Whether the call was admitted."""
        return self.signal is Signal.PROCEED

    @property
    def moment_us(self) -> int:
        """When it was decided: by the server's clock where it answered."""
        return self.after_us if self.at_us is None else self.at_us


class Ended(_Record):
    """The end of an admitted call, just before it was settled; `tokens` is None if unreported."""

    record: Literal["ended"] = "ended"
    call: str
    at_us: int
    outcome: Outcome
    tokens: int | None = None


class Settled(_Record):
    """The permit of a call that ended had been settled by this time."""

    record: Literal["settled"] = "settled"
    call: str
    at_us: int


class Heard(_Record):
    """A circuit's change of state as it reached this process; `at_us` by the server's clock."""

    record: Literal["heard"] = "heard"
    policy: str
    subject: str
    previous: CircuitState
    state: CircuitState
    seq: int
    reason: str
    at_us: int
    received_us: int

    @property
    def circuit(self) -> str:
        """Which circuit it is about."""
        return f"{self.policy} {self.subject}"


class Closing(_Record):
    """The worker's last words: what its observers were told, and how its work went."""

    record: Literal["closing"] = "closing"
    observed: dict[str, int]
    dropped: int = 0
    latest_us: int = 0


Record = Annotated[Asked | Ended | Settled | Heard | Closing, Field(discriminator="record")]
_reader: TypeAdapter[Record] = TypeAdapter(Record)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now_us() -> int:
    """Get this machine's time in microseconds since the epoch."""
    return time.time_ns() // 1000


def micros_of(moment: datetime) -> int:
    """Get a moment in microseconds since the epoch."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


class Journal:
    """Appends records to a file; a line is in the file as soon as it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("x", encoding="utf-8", buffering=1)

    def write(self, record: Record) -> None:
        """Append one record."""
        self._file.write(record.model_dump_json() + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def read_journal(path: Path) -> list[Record]:
    """Get a worker's records in the order of writing.

    A last line without an end is left out: its worker was killed while it wrote.

    Raises:
        StanchionError: a whole line is no record; the text names file and line.
    """
    records: list[Record] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                break
            try:
                records.append(_reader.validate_json(line))
            except ValidationError as error:
                reason = error.errors(include_url=False)[0]["msg"]
                raise StanchionError(f"{path}, line {number}: no record: {reason}") from None
    return records
