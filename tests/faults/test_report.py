"""The table of faults: nothing in it that did not pass, and nothing missing from it unseen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.report import FaultRecord
from tests.faults.table import ROWS, Line, merged, missing, put, table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"

TESTS = """
import pytest

@pytest.mark.parametrize("row", {rows})
def test_a_fault(row, fault_record):
    record = fault_record(row, "produced", "here", deadline=0.5)
    record.saw("vetoed", took=0.25)
    record.charge(2)
    assert row != {failing}

def test_without_a_record():
    raise AssertionError("it does not run")
"""


def line(row: int, server: str = "valkey9", **fields: object) -> Line:
    record = FaultRecord(row, "as ever", server, **fields)  # pyright: ignore[reportArgumentType]
    record.saw("denied", took=0.1)
    return record.line()


def test_records_of_one_fault_at_several_servers_are_one_line_with_the_worst_of_the_times():
    first, second, other = line(2), line(2, "redis8", recovery=3.0, charged=4), line(1)
    both = merged([first, other, second])[1]
    assert both.servers == ["redis8", "valkey9"]
    assert (both.asked, both.charged, both.recovery, both.seen) == (2, 4, 3.0, {"denied": 2})
    assert missing([first, other]) == [row for row in ROWS if row > 2]
    with pytest.raises(ValueError, match="no row 31"):
        merged([line(31)])


def test_the_table_goes_between_the_marks_and_changes_nothing_else(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- faults: table -->\nwhat was there\n<!-- end of faults -->\nafter\n"
    )
    for _ in range(2):
        put(page, [line(1)], "pytest")
        before, _, rest = page.read_text().partition("<!-- faults: table -->\n")
        inside, _, after = rest.partition("<!-- end of faults -->\n")
        assert (before, after) == ("before\n", "after\n")
        assert table([line(1)]) in inside
        assert "old text" not in inside


@pytest.mark.parametrize("failing", [0, 7])
def test_a_fault_that_did_not_pass_is_missing_and_fails_the_run(tmp_path: Path, failing: int):
    rows = sorted(ROWS)
    (tmp_path / "test_some.py").write_text(TESTS.format(rows=rows, failing=failing))
    figures = tmp_path / "faults.json"
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.faults.report", "test_some.py"),
            f"--fault-report={figures}",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    told = json.loads(figures.read_text())
    assert [one["row"] for one in told["missing"]] == ([failing] if failing else [])
    assert ran.returncode == (1 if failing else 0), ran.stdout
    assert len(told["faults"]) == len(ROWS) - bool(failing)
    assert told["faults"][0]["worst"] == 0.25
    assert "it does not run" not in ran.stdout
    assert "| 1 | Hung server: produced | here | vetoed (1) | 250 ms | 500 ms |" in ran.stdout


def test_the_page_has_every_fault_of_the_list():
    text = PAGE.read_text("utf-8")
    for row, title in ROWS.items():
        assert f"\n| {row} | {title}: " in text, "make faults ARGS=--fault-report=docs/faults.md"
    assert "| missing |" not in text
