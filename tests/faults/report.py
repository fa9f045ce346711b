"""What each fault did, written down by the test that produces it, as one table.

    make faults
    pytest --fault-report=build/faults.md

A test asks for `fault_record`, says which fault of the list it produces, and has its calls timed
and counted:

    async def test_a_paused_server_denies(valkey, fault_record):
        record = fault_record(6, "CLIENT PAUSE ALL", valkey, deadline=DEADLINE)
        async with bus_on(valkey.url) as bus:
            valkey.execute("CLIENT", "PAUSE", 1000, "ALL")
            decision = await record.ask(bus.check(Call()))
            assert decision.reason == "store_unavailable"
            with record.recovering():
                assert await recovered(bus)
            record.charge(charged(valkey))

What a test records counts only if the test passes. With `--fault-report` only tests that ask for
`fault_record` run. The option may be given more than once: a file that ends in `.json` gets every
line with its figures, any other one the table, between the marks if it has them. A fault of the
list that nobody recorded is shown as missing, and the run fails.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from stanchion import Decision, Vetoed
from tests.faults.table import Line, missing, put, table

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator

    from tests.servers import RealServer

T = TypeVar("T")

OPTION = "--fault-report"
_PROPERTY = "fault"


@dataclass
class FaultRecord:
    """One fault as one test saw it; times in seconds.

    `asked`, `admitted` and `seen` are counted as answers come in; a test that counts by itself may
    raise them itself.
    """

    row: int
    fault: str
    server: str
    deadline: float | None = None
    seen: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    admitted: int = 0
    charged: int | None = None
    worst: float | None = None
    recovery: float | None = None

    async def ask(self, answer: Awaitable[T]) -> T:
        """Await what a verb of the bus gives: timed, counted, given back or raised again."""
        began = time.monotonic()
        try:
            given = await answer
        except Exception as error:
            self.saw(error, took=time.monotonic() - began)
            raise
        self.saw(given, took=time.monotonic() - began)
        return given

    def saw(self, *answers: object, took: float | None = None) -> None:
        """Count what a caller was told: decisions, errors, or words for what is neither."""
        for answer in answers:
            self.asked += 1
            self.admitted += isinstance(answer, Decision) and answer.allowed
            self.seen[_told(answer)] += 1
        if took is not None:
            self.took(took)

    def took(self, seconds: float) -> None:
        """Note a time to answer; the worst is kept."""
        self.worst = max(seconds, self.worst or 0.0)

    def charge(self, count: int) -> None:
        """Add what the server has counted."""
        self.charged = (self.charged or 0) + count

    @contextmanager
    def recovering(self) -> Generator[None]:
        """Time the block: it begins when the fault ends, and ends when callers are served."""
        began = time.monotonic()
        yield
        self.recovery = max(time.monotonic() - began, self.recovery or 0.0)

    def line(self) -> Line:
        """Get what is kept."""
        servers = [self.server] if self.server else []
        given = asdict(self)
        del given["server"]
        return Line(**given | {"servers": servers, "seen": dict(self.seen)})


def _told(answer: object) -> str:
    match answer:
        case Decision(allowed=True):
            return "admitted"
        case Decision(reason=reason):
            return f"denied, `{reason}`"
        case Vetoed(decision=Decision(reason=reason)):
            return f"`{type(answer).__name__}`, `{reason}`"
        case BaseException():
            return f"`{type(answer).__name__}`"
        case str():
            return str(answer)
        case _:
            return "done"


class FaultRecords:
    """Makes the records of one test."""

    def __init__(self) -> None:
        self.made: list[FaultRecord] = []

    def __call__(
        self, row: int, fault: str, server: RealServer | str = "", *, deadline: float | None = None
    ) -> FaultRecord:
        """Get a record: of which row of the list, how it is produced, and at which server."""
        name = server if isinstance(server, str) else server.name
        record = FaultRecord(row, fault, name, deadline)
        self.made.append(record)
        return record


@pytest.fixture
def fault_record(request: pytest.FixtureRequest) -> Generator[FaultRecords]:
    """Makes records of faults: `record = fault_record(6, "CLIENT PAUSE", server, deadline=0.4)`.

    `await record.ask(bus.check(event))` times and counts; `record.saw(answer, took=0.1)` is for
    what was timed otherwise, and takes words as well: `record.saw("lease lost")`. `with
    record.recovering():` times the way back. `record.charge(number)` adds what the server counted.
    Nothing else is needed: the figures are kept with the test, if it passes. Records of one fault
    at several servers become one line of the table.
    """
    records = FaultRecords()
    yield records
    for record in records.made:
        if record.seen:
            request.node.user_properties.append((_PROPERTY, record.line()))


class Report:
    """The lines of a session: a plugin of that session's own."""

    def __init__(self, files: list[Path], command: str) -> None:
        self._files = files
        self._command = command
        self._failed: set[str] = set()
        self._lines: list[Line] = []

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out the tests that record nothing."""
        writing = [item for item in items if "fault_record" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in writing])
        items[:] = writing

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what a test recorded, once it has passed to its end."""
        if not report.passed:
            self._failed.add(report.nodeid)
        elif report.when == "teardown" and report.nodeid not in self._failed:
            for name, kept in report.user_properties:
                if name == _PROPERTY:
                    assert isinstance(kept, Line)
                    self._lines.append(kept)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the files, and fail a session that has not seen every fault of the list."""
        for file in self._files:
            put(file, self._lines, self._command)
        if missing(self._lines) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table, and what is missing from it."""
        terminalreporter.section("faults")
        terminalreporter.write_line(table(self._lines))
        if rows := missing(self._lines):
            told = ", ".join(map(str, rows))
            terminalreporter.write_line(f"no test that passed has recorded: {told}", red=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--fault-report FILE`."""
    parser.addoption(
        OPTION,
        action="append",
        default=[],
        metavar="FILE",
        type=Path,
        help="write what each fault of the list did; fails if one of them is missing",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect, if a file was given."""
    if files := config.getoption(OPTION):
        words = " ".join(map(str, config.invocation_params.args))
        config.pluginmanager.register(Report(files, f"pytest {words}"), "faults")
