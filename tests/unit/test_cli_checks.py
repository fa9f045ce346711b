"""The demo's verdict: logs made by hand, one thing wrong in each, and the status it gives."""

from __future__ import annotations

import itertools

import pytest

from stanchion.cli.demo.checks import check, failures
from stanchion.cli.demo.conclude import judge
from stanchion.cli.demo.plan import Limits
from stanchion.cli.demo.records import Asked, Closing, Ended, Heard, Settled
from stanchion.cli.demo.summary import Evidence, summarize
from stanchion.cli.output import Exit
from stanchion.decisions import CircuitState, Outcome, Signal
from stanchion.states import parse_state

MS, SECOND = 1_000, 1_000_000
START = 1_795_426_893_000_000 // (3 * SECOND) * 3 * SECOND
LLM = ("provider", "calls", "tokens", "in-flight")
LIMITS = Limits(
    calls=10,
    calls_burst=5,
    tokens=1_000,
    tokens_per=3.0,
    in_flight=3,
    half_open_calls=2,
    open_for=0.2,
)
OPEN, HALF, CLOSED = CircuitState.OPEN, CircuitState.HALF_OPEN, CircuitState.CLOSED


class Story:
    """What two workers wrote down, to be spoilt by a test."""

    def __init__(self):
        self.logs = {1: [], 2: []}
        self.heard = []
        self.ttls = {"stanchion:{demo}:quota:tokens:acme": 6.0}
        self.states = []
        self.most = {"large": 2}
        self.billed = {"large": 0}
        self._names = itertools.count()

    def call(self, at_ms, *, worker=1, lasts_ms=50, tokens=100, real=80, ends=True, **fields):
        at, name = START + at_ms * MS, str(next(self._names))
        known = {
            "call": name,
            "event": "llm:prompt",
            "fields": {"tenant": "acme", "model": "large"},
            "policies": LLM,
            "tokens": tokens,
            "before_us": at - 500,
            "at_us": at,
            "after_us": at + 500,
        }
        self.logs[worker].append(Asked(**{**known, **fields}))
        if ends:
            end = at + lasts_ms * MS
            self.logs[worker].append(
                Ended(call=name, at_us=end, outcome=Outcome.SUCCESS, tokens=real)
            )
            self.logs[worker].append(Settled(call=name, at_us=end + MS))
            self.billed["large"] += real

    def veto(self, at_ms, policy, reason):
        vetoes = ((policy, reason),)
        self.call(at_ms, ends=False, vetoes=vetoes, signal=Signal.RETRY)

    def change(self, seq, state, at_ms, *, to=(0, 1, 2)):
        at = START + at_ms * MS
        for process in to:
            log = self.heard if process == 0 else self.logs[process]
            log.append(
                Heard(
                    policy="provider",
                    subject="large",
                    previous=CLOSED,
                    state=state,
                    seq=seq,
                    reason="failure_rate",
                    at_us=at,
                    received_us=at + 2 * MS,
                )
            )

    def counter(self, used, *, held=0):
        lines = (
            "key stanchion:{demo}:quota:tokens:acme",
            "kind quota",
            "policy tokens",
            "subject acme",
            f"start {START}",
            f"used {used}",
            f"held {held}",
        )
        self.states = [parse_state(lines)]

    def failures(self, *, outage=True, complete=True):
        evidence = Evidence(
            logs=self.logs,
            heard=self.heard,
            states=self.states,
            ttls=self.ttls,
            most=self.most,
            billed=self.billed,
        )
        summary = summarize(LIMITS.policies(), evidence)
        checks = check(summary, outage=outage, complete=complete)
        return failures(checks)


@pytest.fixture
def story():
    """A run in which everything held."""
    story = Story()
    for number in range(4):
        story.call(number * 110, worker=1 + number % 2)
    story.change(1, OPEN, 450)
    story.veto(500, "provider", "circuit_open")
    story.change(2, HALF, 700)
    story.call(700)
    story.call(710, worker=2)
    story.change(3, CLOSED, 770)
    story.call(800)
    story.counter(7 * 80)
    for log in story.logs.values():
        log.append(Closing(observed={"llm:prompt": 3}))
    return story


def about(failed):
    return [(one.about, one.name) for one in failed]


def test_a_run_in_which_everything_held_has_no_failure(story):
    assert story.failures() == []


def test_calls_beyond_the_rate_are_told(story):
    for number in range(6):
        story.call(1_500 + number, lasts_ms=0, tokens=1, real=0)
    (failed,) = story.failures()
    assert about([failed]) == [("rates", "calls acme:large")]
    assert "6 admitted in 0.005 s, where 5.05 may be" in failed.text


def test_tokens_beyond_the_quota_are_told(story):
    story.call(1_500, tokens=500, real=450)
    story.counter(7 * 80 + 450)
    (failed,) = story.failures()
    assert about([failed]) == [("quotas", "tokens acme")]
    assert "1,010 settled in the fullest window" in failed.text


def test_reservations_beyond_the_quota_are_told_though_less_was_used(story):
    story.call(1_500, tokens=600, real=1)
    story.counter(7 * 80 + 1)
    (failed,) = story.failures()
    assert "1,160 with what was reserved" in failed.text


def test_a_counter_that_is_not_what_was_spent_is_told(story):
    story.counter(7 * 80 - 1)
    assert about(story.failures()) == [("counters", "tokens acme")]


@pytest.mark.parametrize(
    ("lasts_ms", "accepted"), [(1_450, {10}), (1_499, {10, 100}), (1_500, {100}), (1_600, {100})]
)
def test_what_is_settled_after_its_window_stays_reserved_in_it(story, lasts_ms, accepted):
    story.call(1_500, lasts_ms=lasts_ms, tokens=100, real=10)
    for used in (9, 10, 50, 100, 101):
        story.counter(7 * 80 + used)
        good = min(accepted) <= used <= max(accepted)
        assert about(story.failures()) == ([] if good else [("counters", "tokens acme")]), used


def test_what_a_call_still_reserves_is_counted_as_the_store_does(story):
    story.call(1_500, ends=False)
    story.counter(7 * 80, held=100)
    assert story.failures(complete=False) == []


def test_too_many_calls_at_once_are_told(story):
    for number in range(4):
        story.call(1_500 + number * 100, lasts_ms=400, tokens=1, real=0)
    assert about(story.failures()) == [("caps", "in-flight large")]


def test_too_many_calls_at_the_endpoint_are_told_though_no_log_shows_them(story):
    story.most["large"] = 4
    assert about(story.failures()) == [("caps", "in-flight large")]


def test_a_call_through_an_open_circuit_is_told(story):
    story.call(600, tokens=1, real=0)
    (failed,) = story.failures()
    assert about([failed]) == [("circuits", "provider large")]
    assert failed.text == "1 calls while open"


def test_a_probe_too_many_is_told(story):
    story.call(720, tokens=1, real=0, lasts_ms=1)
    (failed,) = story.failures()
    assert failed.text == "3 calls while half_open"


def test_a_circuit_that_did_not_stay_open_is_told(story):
    story.change(4, OPEN, 2_000)
    story.change(5, HALF, 2_199)
    (failed,) = story.failures()
    assert failed.text == "stayed open for 0.199 s or longer, at least 0.2 s"


def test_a_worker_that_did_not_learn_is_told(story):
    story.change(4, OPEN, 2_000, to=(0, 2))
    (failed,) = story.failures()
    assert about([failed]) == [("news", "provider large")]
    assert failed.text == "worker 1 did not learn that it was open (change 4)"


def test_a_change_of_which_only_an_onlooker_heard_is_one_that_all_workers_missed(story):
    story.change(4, OPEN, 2_000, to=(0,))
    (failed,) = story.failures()
    assert "worker 1" in failed.text
    assert "worker 2" in failed.text


def test_a_key_that_never_ends_is_told(story):
    story.ttls["stanchion:{demo}:rate:calls:acme:large"] = None
    (failed,) = story.failures()
    assert failed.about == "keys"
    assert "stanchion:{demo}:rate:calls:acme:large" in failed.text


def test_no_key_at_all_is_told(story):
    story.ttls = {}
    assert about(story.failures()) == [("keys", "every key has a TTL")]


def test_a_circuit_that_stayed_closed_while_the_provider_failed_is_told(story):
    story.heard.clear()
    for worker, log in story.logs.items():
        story.logs[worker] = [record for record in log if not isinstance(record, Heard)]
    assert about(story.failures()) == [("circuits", "a circuit opened")]
    assert story.failures(outage=False) == []


def test_tokens_that_the_logs_do_not_have_are_told_unless_calls_were_cut_off(story):
    story.billed["large"] += 1
    assert about(story.failures()) == [("tokens", "what was billed")]
    assert story.failures(complete=False) == []


def test_a_call_without_an_end_is_told(story):
    story.call(1_500, tokens=1, ends=False)
    story.counter(7 * 80, held=1)
    assert about(story.failures()) == [("calls", "every admitted call")]


def move_the_workers_clocks(story, by_us):
    ours = ("before_us", "after_us", "received_us")

    def moved(record):
        names = [*ours, "at_us"] if isinstance(record, Ended | Settled) else ours
        known = {name: getattr(record, name) + by_us for name in names if hasattr(record, name)}
        return record.model_copy(update=known)

    story.logs = {worker: [moved(one) for one in log] for worker, log in story.logs.items()}
    story.heard = [moved(one) for one in story.heard]


@pytest.mark.parametrize("hours", [5, -5])
@pytest.mark.parametrize(("tokens", "found"), [(1, []), (600, [("quotas", "tokens acme")])])
def test_a_server_whose_clock_is_hours_away_is_measured_all_the_same(story, hours, tokens, found):
    story.call(1_500, tokens=tokens, real=1)
    story.counter(7 * 80 + 1)
    move_the_workers_clocks(story, hours * 3600 * SECOND)
    assert about(story.failures()) == found


def test_one_failed_check_is_a_failed_run_with_one_line_that_names_it(story, capsys):
    story.most["large"] = 4
    story.ttls = {}
    checks = story.failures()
    assert judge(checks, interrupted=False) is Exit.FAILED
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("stanchion: 2 of 2 checks failed: caps: in-flight large: ")


@pytest.mark.parametrize(("interrupted", "status"), [(False, 0), (True, 130)])
def test_checks_that_all_held_are_a_good_run_unless_it_was_interrupted(interrupted, status):
    assert judge([], interrupted=interrupted) == status
