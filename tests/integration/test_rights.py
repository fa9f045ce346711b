"""The ACL lines of docs/operations.md: enough for what they are for, and none of it idle."""

from __future__ import annotations

import asyncio
import json
import sys
from types import SimpleNamespace

import pytest
import redis
from redis.exceptions import NoPermissionError

from stanchion.cli import main
from stanchion.cli.tailing import Filter, Tail, tail
from stanchion.observers.delivery import Undelivered
from tests.faults.calls import NAMESPACE, PREFIX
from tests.faults.verbs import every_verb
from tests.observers.relays import Target, appended, pending, relaying, steps
from tests.rights import PASSWORD, commands, documented, url_of
from tests.waiting import eventually

KEY = f"{PREFIX}rate:calls:small"


def allow(server, who, *lines):
    """Make a user of some of its lines, and get the commands that these allow."""
    for rules in lines:
        server.execute("ACL", "SETUSER", who, *rules)
    return set().union(*map(commands, lines))


def refused(server):
    """What was refused since the last ACL LOG RESET, other than what is asked in passing."""
    entries = server.control.acl_log()
    return {entry["object"] for entry in entries} - {"info", "client|setinfo"}


def wanted(url, *, start=None, count=1):
    return Tail(url, "default", Filter(), start, None, dead=False, count=count, as_json=True)


async def test_an_observer_listens_and_reads_and_changes_nothing(server, capsys):
    given = allow(server, "observer", documented("observer")[0])
    url = url_of("observer", server.url)
    server.execute("ACL", "LOG", "RESET")
    await appended(server.url, *steps(2))
    with server.counting() as counted:
        assert await tail(wanted(url, start="0", count=2)) == 0
        following = asyncio.create_task(tail(wanted(url)))
        channel = "stanchion:{default}:events"
        await eventually(lambda: server.control.pubsub_numsub(channel)[0][1])
        (event,) = steps(1)
        server.execute("PUBLISH", channel, json.dumps(event.to_cloudevent()))
        assert await asyncio.wait_for(following, 5) == 0
        # A stream that is not there yet is asked where it ends.
        server.execute("DEL", "stanchion:{default}:stream")
        following = asyncio.create_task(tail(wanted(url, start="$")))
        await eventually(lambda: any(c["cmd"] == "xread" for c in server.connections()))
        await appended(server.url, *steps(1))
        assert await asyncio.wait_for(following, 5) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert refused(server) == set()
    assert given - counted.keys() == set()
    with redis.Redis.from_url(url) as client:
        for command in ("HSET x y z", "DEL x", "XADD x * event y", "EVAL return 0"):
            with pytest.raises(NoPermissionError):
                client.execute_command(*command.replace("x", f"{PREFIX}x").split())


async def test_an_observer_of_a_stream_acknowledges_and_keeps_dead_letters(server):
    given = allow(server, "observer", *documented("observer")[:2])
    alone = commands(documented("observer")[1])
    there = SimpleNamespace(url=url_of("observer", server.url))
    server.execute("ACL", "LOG", "RESET")
    await appended(server.url, *steps(3))

    async def claimed(events):
        # So long that the relay has to say that it still works on these.
        await eventually(lambda: server.commandstats()["xclaim"])

    async def refusing(events):
        raise Undelivered(events[:1], "malformed", permanent=True)

    with server.counting() as counted:
        async with relaying(there, Target(claimed), attempts=1):
            await eventually(lambda: pending(server, "it") == 0)
    await appended(server.url, *steps(2))
    # Not known to the server yet.
    server.execute("SCRIPT", "FLUSH")
    with server.counting() as more:
        async with relaying(there, Target(refusing), attempts=1):
            await eventually(lambda: server.control.exists("stanchion:{default}:stream.dead"))
            await eventually(lambda: pending(server, "it") == 0)
    assert refused(server) == set()
    with redis.Redis.from_url(there.url) as client, pytest.raises(NoPermissionError):
        client.eval("return redis.call('ZADD', KEYS[1], 1, 'x')", 1, "stanchion:{default}:denied")
    assert alone <= given
    assert alone - counted.keys() - more.keys() == set()


def test_an_operator_runs_every_command(server, monkeypatch, capsys):
    given = allow(server, "operator", documented("operator", NAMESPACE)[0])
    url = url_of("operator", server.url)
    server.execute("ACL", "LOG", "RESET")
    asyncio.run(appended(server.url, *steps(1)))
    server.execute("RENAME", "stanchion:{default}:stream", f"{PREFIX}stream")
    here, at = ("--namespace", NAMESPACE), ("--url", url)
    with server.counting() as counted:
        asyncio.run(every_verb(url))
        for words in (
            ("override", KEY, "10", *at),
            ("inspect", *at, *here),
            ("inspect", KEY, *at),
            ("override", KEY, "--remove", *at),
            ("halt", url, "--on", "llm:*", "--who", "alice", "--why", "costs", *here),
            ("halts", url, *here),
            ("resume", url, *here),
            ("lost", url, *here),
            ("lost", "--restore", url, *here),
            ("tail", url, "--from", "start", "--count", "1", *here),
            ("doctor", url, *here),
        ):
            monkeypatch.setattr(sys, "argv", ["stanchion", *words])
            with pytest.raises(SystemExit) as end:
                main()
            out = capsys.readouterr().out
            assert end.value.code == 0, words
            assert "not known" not in out
            assert PASSWORD not in out
        with server.sync_client(username="operator", password=PASSWORD) as client:
            client.xinfo_stream(f"{PREFIX}stream")
    assert refused(server) == set()
    assert given - counted.keys() == set()


async def test_a_worker_that_writes_the_stream_needs_the_second_line(server):
    given = allow(server, "worker", *documented("worker")[:2])
    server.execute("ACL", "LOG", "RESET")
    with server.counting() as counted:
        await appended(url_of("worker", server.url), *steps(3))
    assert refused(server) == set()
    assert commands(documented("worker")[1]) - counted.keys() == set()
    assert given


async def test_a_worker_on_a_cluster_needs_one_more(cluster):
    first, *_, clustered = documented("worker", NAMESPACE)
    assert clustered == ["+cluster|slots"]
    for node in cluster.nodes:
        allow(node, "worker", first, clustered)
        node.execute("ACL", "LOG", "RESET")
    await every_verb(url_of("worker", cluster.url))
    assert set().union(*map(refused, cluster.nodes)) == set()


async def test_an_operator_of_a_cluster_is_told_everything(cluster, monkeypatch, capsys):
    first, clustered = documented("operator")
    for node in cluster.nodes:
        allow(node, "operator", first, clustered)
    monkeypatch.setattr(sys, "argv", ["stanchion", "doctor", url_of("operator", cluster.url)])
    with pytest.raises(SystemExit) as end:
        await asyncio.to_thread(main)
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert "all slots served" in out
    assert "not known" not in out


async def test_a_worker_behind_sentinels_needs_no_more(sentinel):
    for server in sentinel.data:
        allow(server, "worker", documented("worker", NAMESPACE)[0])
    sentinel.primary.execute("ACL", "LOG", "RESET")
    await every_verb(url_of("worker", sentinel.url))
    assert refused(sentinel.primary) == set()
    for server in sentinel.data:
        server.execute("ACL", "DELUSER", "worker")
