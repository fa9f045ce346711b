"""Recorded traffic: read, sped up, dealt out, and limits found from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from stanchion.cli.demo.derive import (
    KEPT_BY_CAP,
    KEPT_BY_QUOTA,
    KEPT_BY_RATE,
    derive,
    within_budget,
    within_cap,
    within_rate,
)
from stanchion.cli.demo.endpoint import latency
from stanchion.cli.demo.plan import Call, Outage
from stanchion.cli.demo.setup import Options, Setup, logs_directory
from stanchion.cli.demo.trace import read_trace
from stanchion.errors import ConfigError

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
RECORDED = Path(__file__).parents[3] / "shared" / "data" / "azure-llm-2023-code.csv"


@pytest.fixture
def write(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "trace.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def calls(*rows):
    return [Call(due=due, prompt=prompt, generated=generated) for due, prompt, generated in rows]


def test_calls_are_read_in_order_with_their_distance_from_the_first(write):
    path = write(
        HEAD
        + "2023-11-16 18:17:04.0319600,3180,8\n"
        + "2023-11-16 18:17:03.9799600,4808,10\n"
        + "2023-11-16 18:17:05,0,0\n"
    )
    trace = read_trace(path)
    assert list(trace.calls) == calls((0.0, 4808, 10), (0.052, 3180, 8), (1.02004, 0, 0))
    assert (trace.seconds, trace.largest) == (1.02004, 10)


def test_other_columns_a_byte_order_mark_and_zones_are_taken(write):
    path = write(
        "model,GeneratedTokens,TIMESTAMP,ContextTokens\r\n"
        "m1,5,2024-05-10 02:00:00.009930+02:00,100\r\n"
        "m1,6,2024-05-10T00:00:01Z,200\r\n",
        "utf-8-sig",
    )
    assert list(read_trace(path).calls) == calls((0.0, 100, 5), (0.99007, 200, 6))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no column TIMESTAMP, ContextTokens, GeneratedTokens; expected a line TIMESTAMP,"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "no column GeneratedTokens"),
        (HEAD, "there are no calls in it"),
        (HEAD + "yesterday,1,1\n", "line 2: TIMESTAMP='yesterday': expected YYYY-MM-DD"),
        (HEAD + "2023-13-16 18:17:03,1,1\n", "line 2: TIMESTAMP='2023-13-16 18:17:03'"),
        (HEAD + "2023-11-16 18:17:03,1,1\n\n2023-11-16 18:17:03.x,1,1\n", "line 4: TIMESTAMP="),
        (HEAD + "2023-11-16 18:17:03,-1,1\n", "line 2: ContextTokens='-1': expected a whole"),
        (HEAD + "2023-11-16 18:17:03,1,1.5\n", "line 2: GeneratedTokens='1.5': expected a whole"),
        (HEAD + "2023-11-16 18:17:03,1\n", "line 2: GeneratedTokens='': expected a whole"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line(write, text, reason):
    with pytest.raises(ConfigError) as refused:
        read_trace(write(text))
    assert reason in str(refused.value)
    assert "trace.csv" in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(write, tmp_path):
    for path, reason in (
        (tmp_path / "absent.csv", "No such file"),
        (tmp_path, "Is a directory"),
        (write("TIMESTAMP,ContextTokens\xff", "latin-1"), "codec can't decode"),
    ):
        with pytest.raises(ConfigError, match=reason):
            read_trace(path)


def test_a_trace_is_sped_up_cut_and_dealt_out_in_turn(write):
    path = write(HEAD + "".join(f"2023-11-16 18:17:{n:02},{n},1\n" for n in range(10)))
    trace = read_trace(path).sped_up(4)
    assert trace.seconds == 9 / 4
    assert [call.due for call in trace.calls[:3]] == [0.0, 0.25, 0.5]
    assert [call.prompt for call in trace.share(2, 3)] == [1, 4, 7]
    assert sum(len(trace.share(worker, 3)) for worker in (1, 2, 3)) == 10
    cut = trace.until(1.0)
    assert ([call.prompt for call in cut.calls], cut.seconds) == ([0, 1, 2, 3], 1.0)
    assert trace.until(100.0) is trace


# ------------------------------------------------------------------------------- limits from it


def test_a_rate_lets_a_burst_through_and_then_what_comes_back():
    # 8 a second, in bursts of 2.
    rows = calls(*((0.0, 1, 1) for _ in range(4)), (0.125, 1, 1), (0.13, 1, 1), (0.5, 1, 1))
    assert [call.due for call in within_rate(rows, 8)] == [0.0, 0.0, 0.125, 0.5]


def test_a_budget_is_for_one_window():
    rows = calls((0.0, 60, 10), (0.5, 20, 11), (0.6, 20, 10), (3.0, 90, 10), (3.1, 1, 0))
    passed = within_budget(rows, 100, 3.0)
    assert [call.due for call in passed] == [0.0, 0.6, 3.0]


def test_a_cap_lets_the_next_in_when_an_answer_has_come():
    soon, late = latency(10) / 2, latency(10) + 0.1
    rows = calls((0.0, 1, 10), (0.0, 1, 10), (soon, 1, 10), (late, 1, 10))
    assert [call.due for call in within_cap(rows, 2)] == [0.0, 0.0, late]


def test_each_derived_limit_refuses_its_share(write):
    rows = "".join(
        f"2023-11-16 18:{minute:02}:{second:02}.{n:03},{100 + 7 * n},{n % 50}\n"
        for minute in range(2)
        for second in range(0, 60, 3)
        for n in range(second % 20 + 1)
    )
    trace = read_trace(write(HEAD + rows)).sped_up(10)
    limits = derive(trace).limits
    passed = within_rate(trace.calls, limits.calls)
    kept = [len(passed) / len(trace.calls)]
    budget = within_budget(passed, limits.tokens, limits.tokens_per)
    kept.append(len(budget) / len(passed))
    kept.append(len(within_cap(budget, limits.in_flight)) / len(budget))
    wanted = [KEPT_BY_RATE, KEPT_BY_QUOTA, KEPT_BY_CAP]
    assert all(0 <= got - want < 0.05 for got, want in zip(kept, wanted, strict=True)), kept
    # One less of each would refuse too many.
    assert len(within_rate(trace.calls, limits.calls - 1)) < KEPT_BY_RATE * len(trace.calls)
    assert len(within_cap(budget, limits.in_flight - 1)) < KEPT_BY_CAP * len(budget)


def test_one_call_is_enough_and_its_reservation_fits(write):
    trace = read_trace(write(HEAD + "2023-11-16 18:17:03,4000,30\n"))
    limits = derive(trace).limits
    assert (limits.calls, limits.in_flight) == (1, 1)
    assert limits.tokens >= 4030
    limits.policies()


# ---------------------------------------------------------------------------------------- setup


def test_a_trace_is_sped_up_to_15_seconds_unless_a_speed_is_given(write):
    path = write(HEAD + "2023-11-16 18:00:00,1,1\n2023-11-16 19:00:00,1,1\n")
    assert Setup.of(Options(trace=path)).seconds == pytest.approx(15.0)
    assert Setup.of(Options(trace=path, speed=600)).seconds == pytest.approx(6.0)
    shortened = Setup.of(Options(trace=path, speed=100, seconds=20))
    assert shortened.trace is not None
    assert (shortened.seconds, len(shortened.trace.calls)) == (20, 1)
    assert shortened.ends is None


def test_agents_stop_when_the_time_is_up_with_an_outage_in_the_middle():
    setup = Setup.of(Options(seconds=20))
    assert (setup.ends, setup.outage) == (20, Outage(start=7.0, end=10.0))
    assert Setup.of(Options()).ends == 12.0


def test_every_worker_gets_its_part(write, tmp_path):
    path = write(HEAD + "".join(f"2023-11-16 18:17:{n:02},{n},{n}\n" for n in range(5)))
    options = Options(trace=path, workers=2, logs=tmp_path)
    jobs = Setup.of(options).jobs(options, url="u", namespace="n", endpoint="e", home=tmp_path)
    assert [job.worker for job in jobs] == [1, 2]
    assert [len(job.calls or ()) for job in jobs] == [3, 2]
    assert {job.largest for job in jobs} == {4}
    assert not jobs[0].temporary
    agents = Options(workers=5)
    jobs = Setup.of(agents).jobs(agents, url="u", namespace="n", endpoint="e", home=tmp_path)
    assert [(job.calls, job.lanes) for job in jobs] == [(None, 2)] * 5


def test_logs_go_where_they_were_asked_for_and_else_are_removed(tmp_path):
    with logs_directory(None) as home:
        (home / "worker-1.jsonl").touch()
    assert not home.exists()
    with logs_directory(tmp_path / "a" / "b") as home:
        (home / "worker-1.jsonl").touch()
    assert (tmp_path / "a" / "b" / "worker-1.jsonl").exists()


def test_logs_do_not_go_on_top_of_others(tmp_path):
    (tmp_path / "worker-1.jsonl").touch()
    for path, reason in (
        (tmp_path, "logs of another run"),
        (tmp_path / "worker-1.jsonl" / "x", "Not a directory"),
    ):
        with pytest.raises(ConfigError, match=reason), logs_directory(path):
            pytest.fail("it was given")


def test_an_hour_of_real_traffic_is_read_whole():
    if not RECORDED.exists():
        pytest.skip(f"{RECORDED} is not there: it is no part of the project")
    trace = read_trace(RECORDED)
    assert len(trace.calls) == len(RECORDED.read_text().splitlines()) - 1
    assert trace.calls[0] == Call(due=0.0, prompt=4808, generated=10)
    assert trace.calls[1].due == 0.052
    assert 3435 < trace.seconds < 3436
