"""`stanchion override`: one command, and every worker has the new limit with its next decision."""

from __future__ import annotations

import sys

import pytest

from stanchion import EventBus
from stanchion.cli import main
from tests.busses import Call, breaker, quota, rate, slots

PREFIX = "stanchion:{default}"
POLICIES = [
    rate(by="tenant"),
    quota(by="tenant"),
    slots(by="tenant"),
    breaker(by="tenant"),
]


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["stanchion", "override", *words])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return end.value.code, captured.out, " ".join(captured.err.split())

    return run


@pytest.fixture
def limits(valkey):
    """What a worker that is told nothing finds when it next asks."""

    async def look(tenant):
        async with EventBus.from_url(valkey.url, policies=POLICIES) as bus:
            decision = await bus.peek(Call(tenant=tenant))
            return {verdict.policy: verdict.limit for verdict in decision.verdicts}

    import asyncio

    return lambda tenant: asyncio.run(look(tenant))


@pytest.mark.parametrize(
    ("key", "policy"),
    [("rate:calls:acme", "calls"), ("quota:tokens:acme", "tokens"), ("slots:slots:acme", "slots")],
)
def test_one_subject_has_another_limit_until_it_is_taken_away(run, limits, valkey, key, policy):
    before = limits("acme")
    status, out, err = run(f"{PREFIX}:{key}", "77", "--url", valkey.url)
    assert (status, err) == (0, "")
    assert out == f"{PREFIX}:{key} has a limit of 77\n"
    assert limits("acme") == {**before, policy: 77}
    assert limits("other") == before
    status, out, _ = run(f"{PREFIX}:{key}", "--remove", "--url", valkey.url)
    assert (status, out) == (0, f"{PREFIX}:{key} has the limit that its policy declares\n")
    assert limits("acme") == before


async def burst_of(url, policy):
    async with EventBus.from_url(url, policies=[policy]) as bus:
        decision = await bus.peek(Call(tenant="acme", tokens=1))
        return decision.verdicts[0].remaining


@pytest.mark.parametrize(
    ("declared", "words", "left"),
    [({}, (), 49), ({"burst": 3}, (), 2), ({}, ("--burst", "9"), 8)],
    ids=["follows", "apart", "given"],
)
def test_a_burst_follows_the_limit_unless_it_was_set_apart(run, valkey, declared, words, left):
    import asyncio

    policy = rate(by="tenant", **declared)
    assert run(f"{PREFIX}:rate:calls:acme", "50", "--url", valkey.url, *words)[0] == 0
    assert asyncio.run(burst_of(valkey.url, policy)) == left


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("rate:calls:acme", "5"), "key='rate:calls:acme': expected stanchion:{<namespace>}:rate|"),
        ((f"{PREFIX}:circuit:provider:m1", "5"), "expected stanchion:{<namespace>}:rate|quota|"),
        ((f"{PREFIX}:rate:calls:acme", "0"), "limit=0: expected from 1 to 2^52"),
        ((f"{PREFIX}:rate:calls:acme", str(2**60)), "expected from 1 to 2^52"),
        ((f"{PREFIX}:rate:calls:acme",), "give either a LIMIT or --remove"),
        ((f"{PREFIX}:rate:calls:acme", "5", "--remove"), "give either a LIMIT or --remove"),
        ((f"{PREFIX}:rate:calls:acme", "--remove", "--burst", "3"), "it goes with a LIMIT"),
        ((f"{PREFIX}:rate:calls:acme", "5", "--url", "memory://"), "memory:// is inside one"),
        ((f"{PREFIX}:rate:calls:acme", "5", "--url", "ftp://h"), "url scheme='ftp'"),
    ],
)
def test_what_cannot_be_overridden_is_named(run, words, text):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert text in err.replace("│ ", "")


def test_a_store_that_is_away_is_status_1(run):
    status, out, err = run(f"{PREFIX}:rate:calls:acme", "5", "--url", "redis://127.0.0.1:1/0")
    assert (status, out) == (1, "")
    assert "cannot change redis://127.0.0.1:1/0" in err
