"""A service that does everything wrong: what the caller sees, how soon, and that it ends there."""

from __future__ import annotations

import socket
import time

import pytest

from stanchion import Reason
from stanchion.events import PolicyFailed
from stanchion.observers import Recorder
from tests.remote import faulty as deeds
from tests.remote.asking import CALL, http_policy, opa_policy

TIMEOUT = 0.15

#: What the service does, what the verdict tells, and whether the timeout is what ends it.
FAULTS = {
    "hangs": (deeds.hang, "no answer within 0.15 s", True),
    "drips": (deeds.drip, "no answer within 0.15 s", True),
    "floods": (deeds.flood, "answered with more than 65536 bytes", False),
    "says-too-much": (
        deeds.answer(b" " * 70_000),
        "answered with 70000 bytes; at most 65536 are read",
        False,
    ),
    "zip-bomb": (deeds.bomb, "answered 200 with no JSON", False),
    "hangs-up": (deeds.hang_up, "closed the connection without an answer", False),
    "breaks-off": (deeds.break_off, "broke off in the middle of its answer", False),
    "babbles": (deeds.babble, "cannot be understood: ClientResponseError", False),
    "500": (deeds.answer({"allow": True}, status=500), "answered 500", False),
    "503": (deeds.answer({"allow": True}, status=503), "answered 503", False),
    "html": (deeds.answer(b"<html>hello</html>"), "answered 200 with no JSON", False),
    "nothing": (deeds.answer(b""), "answered 200 with no JSON", False),
    "not-utf8": (deeds.answer(b'"\xff"'), "answered 200 with no JSON", False),
    "too-deep": (deeds.answer(b"[" * 30_000), "answered 200 with no JSON", False),
    "redirects": (
        deeds.answer({}, status=307, Location="http://elsewhere.invalid/"),
        "redirected to another place: elsewhere.invalid",
        False,
    ),
    "in-circles": (
        deeds.answer({}, status=307, Location="/"),
        "redirected more than 3 times",
        False,
    ),
}


@pytest.mark.parametrize("on_outage", ["veto", "admit"])
@pytest.mark.parametrize(("deed", "told", "slow"), FAULTS.values(), ids=list(FAULTS))
async def test_whatever_goes_wrong_is_told_in_time_and_answered_as_declared(
    in_memory, faulty, deed, told, slow, on_outage
):
    faulty.deed = deed
    recorder = Recorder(on=PolicyFailed)
    policy = http_policy(faulty.url, timeout=TIMEOUT if slow else 5, on_outage=on_outage)
    bus = await in_memory(policy, observers=[recorder], deadline=5)
    began = time.monotonic()
    decision = await bus.check(CALL)
    took = time.monotonic() - began
    assert decision.allowed == (on_outage == "admit")
    (verdict,) = decision.verdicts
    assert (verdict.policy, verdict.reason, verdict.detail) == ("http", Reason.POLICY_FAILED, told)
    assert TIMEOUT * 0.9 < took < 2 if slow else took < 4
    assert (policy.stats.failed, policy.stats.timed_out) == (1, int(slow))
    assert (await recorder.wait_for(PolicyFailed)).policy == "http"


async def test_a_fault_leaves_nothing_behind_for_the_next_question(in_memory, faulty):
    bus = await in_memory(http_policy(faulty.url, timeout=0.3))
    for deed in (deeds.hang, deeds.break_off, deeds.flood, deeds.hang_up):
        faulty.deed = deed
        assert not await bus.check(CALL)
        faulty.deed = deeds.answer({"allow": True})
        assert await bus.check(CALL)


async def test_nobody_there_is_told_at_once(in_memory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        bus = await in_memory(opa_policy(f"http://127.0.0.1:{probe.getsockname()[1]}"))
        began = time.monotonic()
        (veto,) = (await bus.check(CALL)).vetoes
        assert veto.detail == "cannot be reached: Connection refused"
        assert time.monotonic() - began < 0.4, "before the timeout"


async def test_a_name_that_nobody_has_is_told(in_memory):
    bus = await in_memory(opa_policy("http://nobody.invalid"), deadline=5)
    (veto,) = (await bus.check(CALL)).vetoes
    assert veto.reason == Reason.POLICY_FAILED


async def test_while_it_is_away_checks_cost_nothing(in_memory, faulty):
    faulty.deed = deeds.hang
    policy = http_policy(faulty.url, timeout=0.05)
    bus = await in_memory(policy)
    for _ in range(3):
        await bus.check(CALL)
    began = time.monotonic()
    for _ in range(50):
        assert (await bus.check(CALL)).reason == Reason.POLICY_FAILED
    took = time.monotonic() - began
    assert took < 50 * 0.05, "one timeout each"
    assert len(faulty.requests) <= 3 + took / 0.25
