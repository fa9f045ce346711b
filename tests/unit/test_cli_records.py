"""The workers' logs: written and read back whole, and what is broken in one is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from stanchion.cli.demo.records import (
    Asked,
    Closing,
    Ended,
    Heard,
    Journal,
    micros_of,
    read_journal,
)
from stanchion.decisions import CircuitState, Outcome, Signal
from stanchion.errors import StanchionError

RECORDS = [
    Asked(
        call="1",
        event="llm:prompt",
        fields={"tenant": 'a\n"b', "model": "m1"},
        policies=("calls", "tokens"),
        vetoes=(("calls", "limit_reached"),),
        signal=Signal.RETRY,
        tokens=900,
        attempt=2,
        before_us=1_795_426_893_905_218,
        after_us=1_795_426_893_923_444,
        at_us=None,
    ),
    Ended(call="1", at_us=5, outcome=Outcome.FAILURE, tokens=None),
    Heard(
        policy="provider",
        subject="m1",
        previous=CircuitState.CLOSED,
        state=CircuitState.OPEN,
        seq=7,
        reason="failure_rate",
        at_us=1,
        received_us=2,
    ),
    Closing(observed={"llm:prompt": 3}, dropped=1, latest_us=4),
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "worker-1.jsonl"
    with Journal(path) as journal:
        for record in RECORDS:
            journal.write(record)
    return path


def test_records_come_back_as_they_were_written(path):
    assert read_journal(path) == RECORDS
    assert path.read_text().count("\n") == len(RECORDS)


def test_a_record_is_in_the_file_before_the_journal_is_closed(tmp_path):
    with Journal(tmp_path / "log") as journal:
        journal.write(RECORDS[1])
        assert read_journal(tmp_path / "log") == [RECORDS[1]]


def test_a_journal_does_not_write_over_another(path):
    with pytest.raises(FileExistsError):
        Journal(path)


def test_a_last_line_that_was_cut_off_is_left_out(path):
    whole = path.read_text()
    path.write_text(whole[:-10])
    assert read_journal(path) == RECORDS[:-1]


def test_a_whole_line_that_is_no_record_is_an_error_that_names_it(path):
    path.write_text(path.read_text() + '{"record":"ended"}\n')
    with pytest.raises(StanchionError, match=r"worker-1\.jsonl, line 5: no record: Field required"):
        read_journal(path)


def test_moments_are_exact_to_the_microsecond():
    moment = datetime(2026, 11, 23, 9, 41, 33, 919_787, tzinfo=UTC)
    assert micros_of(moment) == 1_795_426_893_919_787
    assert micros_of(moment.astimezone(timezone(timedelta(hours=5)))) == micros_of(moment)
