"""Quotas that wait for replicas: scripts, rights, warnings, and places that have none."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from stanchion import ConfigError, Outcome
from stanchion.cli import main
from tests.faults.calls import Call, bus_on, charged, denied, quota, recovered
from tests.faults.waits import acknowledged, given_back, money
from tests.rights import PASSWORD, documented, url_of
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.followers import Followers
    from tests.servers import RealServer


# ---- the server


async def test_a_script_that_the_server_has_forgotten_is_waited_for_as_well(followers: Followers):
    async with bus_on(followers.url, [money(2)], deadline=2) as bus:
        for count in range(1, 6):
            followers.primary.execute("SCRIPT", "FLUSH")
            assert await bus.check(Call())
            assert [charged(server) for server in followers.servers] == [count] * 3


async def test_without_the_right_to_wait_nothing_is_admitted_and_nothing_stays_charged(
    followers: Followers,
):
    """The documented rights of a worker, and the line for quotas with replicas."""
    primary = followers.primary
    whole, *more = documented("worker", "faults")
    for_replicas = next(rules for rules in more if "+wait" in rules)
    primary.execute("ACL", "SETUSER", "worker", *whole)
    async with bus_on(url_of("worker", primary.url), [money()], deadline=2) as bus:
        (decision,) = await denied(bus)
        assert "wait" in (decision.verdicts[0].detail or "")
        assert PASSWORD not in (decision.verdicts[0].detail or "")
        await given_back(primary)
        primary.execute("ACL", "SETUSER", "worker", *for_replicas)
        assert await recovered(bus)


async def test_too_few_replicas_are_warned_of_at_the_start(
    followers: Followers, caplog: pytest.LogCaptureFixture
):
    async with bus_on(followers.url, [money(3)]):
        await eventually(lambda: "Redis has 2 replicas, and a quota waits for 3" in caplog.text)
    caplog.clear()
    async with bus_on(followers.url, [money(2)], deadline=2) as bus:
        assert await bus.check(Call())
    assert not caplog.text


@pytest.mark.parametrize(("there", "status"), [(2, 0), (3, 1)])
def test_doctor_says_when_quotas_wait_for_more_replicas_than_there_are(
    followers: Followers, there: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    words = ["doctor", followers.url, "--replicas", str(there), "--json"]
    monkeypatch.setattr(sys, "argv", ["stanchion", *words])
    with pytest.raises(SystemExit) as end:
        main()
    findings = {one["check"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert end.value.code == status
    if status:
        found = "2 replicas online, and quotas with replicas=3: they admit nothing"
        assert findings["replication"]["found"] == found
    else:
        assert findings["replication"]["found"].startswith("a primary, 2 of 2 replicas online")


def test_doctor_says_when_a_worker_may_not_wait(
    followers: Followers, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    whole, *_ = documented("worker")
    followers.primary.execute("ACL", "SETUSER", "worker", *whole)
    found: list[str] = []
    for more in ([], ["--replicas", "1"]):
        words = ["doctor", url_of("worker", followers.url), "--json", *more]
        monkeypatch.setattr(sys, "argv", ["stanchion", *words])
        with pytest.raises(SystemExit):
            main()
        told = json.loads(capsys.readouterr().out)["findings"]
        found += [str(one["remedy"]) for one in told if one["check"] == "rights"]
    assert found == ["None", "ACL SETUSER worker +wait"]


# ---- the field


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"replicas": -1}, "greater than or equal to 0"),
        ({"replicas": 101}, "less than or equal to 100"),
        ({"replicas": True}, "valid integer"),
        ({"replicas": "1"}, "valid integer"),
        ({"replicas": 1, "unsettled": "refund"}, 'takes unsettled="charge" only'),
    ],
)
def test_what_cannot_be_waited_for_is_refused_where_it_is_declared(
    given: dict[str, Any], said: str
):
    with pytest.raises(ConfigError, match="replicas") as refused:
        quota(**given)
    assert said in str(refused.value)


# ---- without any


@pytest.mark.parametrize("url", ["memory://", "embedded://"])
async def test_where_nothing_can_take_over_nothing_is_waited_for(url: str):
    """One URL on a laptop, another in production; the policies are the same."""
    async with bus_on(url, [money(2)], deadline=5) as bus:
        decision = await bus.check(Call())
        assert decision
        assert decision.permit is not None
        assert await bus.settle(decision.permit, Outcome.SUCCESS, tokens=3)


async def test_a_server_without_replicas_admits_nothing(valkey: RealServer):
    async with bus_on(valkey.url, [money()]) as bus:
        (decision,) = await denied(bus)
        assert acknowledged(decision.verdicts[0].detail) == (0, 1)
        await given_back(valkey)
