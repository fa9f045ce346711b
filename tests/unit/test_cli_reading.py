"""States in the words of a table: from real keys of every kind, and from lines made by hand."""

from __future__ import annotations

import pytest

from stanchion.cli.inspecting import table_of
from stanchion.cli.reading import Usage, span, usage_of
from stanchion.decisions import CircuitState, Outcome
from stanchion.states import parse_state
from tests.busses import Call, breaker, every_kind


def state(kind, *lines):
    key = f"stanchion:{{default}}:{kind}:p:-"
    return parse_state((f"key {key}", f"kind {kind}", "policy p", "subject -", *lines))


async def test_every_kind_of_key_tells_what_is_in_use(open_valkey):
    bus = await open_valkey(*every_kind())
    for tokens in (30, 40):
        assert await bus.check(Call(tokens=tokens))
    usages = {one.policy: usage_of(one) async for one in bus.inspect()}
    for policy in ("fixed", "sliding", "log"):
        assert usages[policy].amount == "2 of 5", policy
    for policy in ("fixed-quota", "calendar-quota", "rolling-quota"):
        assert usages[policy].amount == "70 of 1,000", policy
        assert usages[policy].share == 0.07
    # Some of the first call may have come back, but not a whole one.
    assert usages["gcra"].amount == "2 of 5"
    assert usages["gcra"].coming.startswith("all back in ")
    assert usages["slots"] == Usage(2, 2, "full", usages["slots"].coming)
    assert usages["slots"].coming.startswith("last lease ends in ")
    assert usages["fixed"].coming.startswith("resets in ")
    assert usages["fixed-quota"].coming.endswith(", 70 reserved")
    assert usages["sliding"].coming == "over the last 60 s"
    assert usages["rolling-quota"].coming == "over the last 60 m"
    assert usages["breaker"] == Usage(None, None, "closed", "")
    assert table_of([one async for one in bus.inspect()]).row_count == len(usages)


async def test_a_circuit_tells_its_state_and_what_comes_next(open_valkey):
    bus = await open_valkey(breaker(window=10, minimum_calls=5))

    async def usage():
        return usage_of(await anext(bus.inspect()))

    await bus.settle((await bus.check(Call())).permit)
    await bus.settle((await bus.check(Call())).permit, Outcome.FAILURE)
    assert await usage() == Usage(None, None, "closed", "1 of 2 calls failed")
    await bus.settle((await bus.check(Call())).permit, Outcome.FAILURE)
    opened = await usage()
    assert opened.state == "open"
    assert opened.coming in {"probes in 30 s", "probes in 29.9 s"}
    await bus.force("provider", CircuitState.HALF_OPEN)
    await bus.check(Call())
    assert await usage() == Usage(None, None, "half_open", "1 of 1 probes out")
    await bus.force("provider", CircuitState.FORCED_OPEN)
    assert (await usage()).state == "forced_open"


@pytest.mark.parametrize(
    ("lines", "usage"),
    [
        (
            ("error WRONGTYPE it is a list",),
            Usage(None, None, "unreadable", "WRONGTYPE it is a list"),
        ),
        (("absent nothing is stored",), Usage(None, None, "unused", "")),
        (("in_use x", "capacity 5"), Usage(None, None, "", "")),
        ((), Usage(None, None, "", "")),
        (
            ("in_use 3.2", "remaining 0", "capacity 4", "tat_in 0.800000", "declared.per 1s"),
            Usage(4, 4, "full", "all back in 800 ms"),
        ),
        (("in_use 0", "remaining 4", "capacity 4", "tat_in -3.0"), Usage(0, 4, "", "")),
    ],
)
def test_lines_are_read_as_far_as_they_can_be(lines, usage):
    assert usage_of(state("rate", *lines)) == usage


def test_a_share_is_known_where_both_figures_are():
    assert Usage(3, 4, "", "").share == 0.75
    assert Usage(None, 4, "", "").share is None
    assert Usage(3, 0, "", "").share is None
    assert Usage(None, None, "", "").amount == "-"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1.0, "0 ms"),
        (0.0834, "83 ms"),
        (1.0, "1 s"),
        (9.96, "10 s"),
        (90.0, "90 s"),
        (120.0, "2 m"),
        (7_201.0, "2 h"),
        (172_800.0, "2 d"),
    ],
)
def test_durations_are_short(seconds, text):
    assert span(seconds) == text
