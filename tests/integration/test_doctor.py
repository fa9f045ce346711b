"""`stanchion doctor`: what it finds on real servers, what it leaves there, and how it ends."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time

import pytest

from stanchion.cli import main
from stanchion.store.doctor.rights import NEEDED
from stanchion.store.doctor.versions import version
from tests.faults.proxy import Proxy
from tests.rights import PASSWORD, commands, documented, url_of
from tests.servers import free_port
from tests.topologies import SLOTS
from tests.waiting import eventually_sync

EVERYWHERE = [
    *("version", "scripts", "rights", "tls", "eviction", "memory", "persistence", "replication"),
    *("state", "clock", "latency"),
]
WRITES = {"hset", "hdel", "zadd", "zrem", "set", "del", "pexpire", "publish", "flushall"}


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command; its status, and what it wrote to standard output and standard error."""
    monkeypatch.delenv("STANCHION_URL", raising=False)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["stanchion", "doctor", *words])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return end.value.code, captured.out, " ".join(captured.err.split())

    return run


@pytest.fixture
def examined(run):
    """Run it with --json; the status, and the findings by what was looked at."""

    def examined(*words):
        status, out, err = run(*words, "--json")
        assert err == ""
        document = json.loads(out)
        return status, {one["check"]: one for one in document["findings"]}

    return examined


# ---- what it looks at, and that nothing stays behind


def test_everything_is_looked_at_and_nothing_is_written(run, server):
    with server.counting() as counted:
        status, out, err = run(server.url)
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == EVERYWHERE
    assert not WRITES & counted.keys()
    assert not dict(server.keys())
    # The one that returns what it is told, and the one that asks for rights.
    assert server.control.info("memory")["number_of_cached_scripts"] == 2
    # No more with a second look.
    run(server.url)
    assert server.control.info("memory")["number_of_cached_scripts"] == 2


def test_a_new_server_has_no_faults_but_keeps_nothing(examined, server):
    status, found = examined(server.url)
    assert status == 0
    # Debian's has the fix, which its version does not show.
    old = server.name == "redis7"
    assert found["version"]["status"] == ("warning" if old else "ok")
    statuses = {check: one["status"] for check, one in found.items() if check != "version"}
    assert statuses == {
        **dict.fromkeys(("scripts", "tls", "eviction", "state", "clock"), "ok"),
        **dict.fromkeys(("rights", "memory", "replication"), "hint"),
        "persistence": "warning",
        "latency": found["latency"]["status"],
    }
    assert "EVALSHA" in found["latency"]["found"]
    assert "FLUSHALL" in found["rights"]["found"]
    assert "appendonly yes" in found["persistence"]["remedy"]


def test_warnings_count_where_they_are_to(run, valkey):
    assert run(valkey.url)[0] == 0
    assert run(valkey.url, "--strict")[0] == 1
    with valkey.configured(appendonly="yes"):
        assert run(valkey.url, "--strict")[0] == 0


# ---- settings


def test_a_server_that_evicts_is_wrong(examined, server):
    with server.configured(maxmemory_policy="allkeys-lru"):
        status, found = examined(server.url)
        assert (status, found["eviction"]["status"]) == (0, "hint")
        with server.configured(maxmemory="100mb"):
            status, found = examined(server.url)
    assert (status, found["eviction"]["status"]) == (1, "error")
    assert "maxmemory-policy noeviction" in found["eviction"]["remedy"]
    assert found["memory"]["status"] == "ok"


def test_memory_that_is_nearly_used_up_is_told_in_time(examined, valkey):
    # So much that what connections take does not matter.
    valkey.execute("SETRANGE", "large", 20_000_000, "x")
    valkey.execute("EXPIRE", "large", 600)
    used = valkey.control.info("memory")["used_memory"]
    for share, status in ((0.5, "ok"), (0.88, "warning"), (0.99, "error")):
        with valkey.configured(maxmemory=round(used / share)):
            assert examined(valkey.url)[1]["memory"]["status"] == status


def test_what_a_restart_forgets_is_told(examined, valkey):
    def persistence():
        one = examined(valkey.url)[1]["persistence"]
        return one["status"], one["found"].split(":")[0]

    with valkey.configured(save="3600 1"):
        assert persistence() == ("hint", "snapshots only")
    with valkey.configured(appendonly="yes"):
        assert persistence() == ("ok", "append-only file, fsync everysec")
        with valkey.configured(appendfsync="no"):
            assert persistence() == ("hint", "append-only file, fsync no")


def test_a_snapshot_that_could_not_be_written_is_wrong(examined, valkey):
    file = valkey.directory / "dump.rdb"
    file.mkdir()
    valkey.execute("BGSAVE")
    eventually_sync(lambda: valkey.control.info("persistence")["rdb_last_bgsave_status"] == "err")
    status, found = examined(valkey.url)
    file.rmdir()
    valkey.execute("SAVE")
    file.unlink()
    assert (status, found["persistence"]["status"]) == (1, "error")
    assert examined(valkey.url)[1]["persistence"]["status"] == "warning"


def test_a_replica_is_wrong(examined, server):
    server.execute("REPLICAOF", "127.0.0.1", free_port())
    status, found = examined(server.url)
    assert (status, found["replication"]["status"]) == (1, "error")
    assert "a replica" in found["replication"]["found"]
    # Also to a user who may not ask for more than that.
    server.execute("ACL", "SETUSER", "worker", *documented("worker")[0])
    status, found = examined(url_of("worker", server.url))
    assert (status, found["replication"]["status"]) == (1, "error")


def test_too_few_replicas_to_write_are_wrong(examined, server):
    with server.configured(min_replicas_to_write=1):
        status, found = examined(server.url)
    assert (status, found["replication"]["status"]) == (1, "error")
    assert "min-replicas-to-write 1" in found["replication"]["found"]


# ---- rights


def test_the_rights_that_it_asks_for_are_those_of_the_docs():
    rules, *_ = documented("worker")
    assert set(NEEDED) == commands(rules)


def test_a_worker_has_the_rights_it_needs_and_is_not_told_the_rest(examined, server):
    rules, *_ = documented("worker")
    server.execute("ACL", "SETUSER", "worker", *rules)
    status, found = examined(url_of("worker", server.url))
    assert status == 0
    assert (found["rights"]["status"], found["rights"]["found"][:6]) == ("ok", "worker")
    unknown = {check for check, one in found.items() if one["found"].startswith("not known")}
    assert unknown == {"eviction", "memory", "persistence", "replication"}
    assert "TIME" in found["latency"]["found"]
    # In another namespace it may do nothing.
    status, found = examined(url_of("worker", server.url), "--namespace", "other")
    assert (status, found["rights"]["status"]) == (1, "error")
    lacks = "~stanchion:{other}:* &stanchion:{other}:* +publish +subscribe"
    assert found["rights"]["found"] == f"worker lacks {lacks}"


@pytest.mark.parametrize(
    ("taken", "told"),
    [
        (("-hset",), "worker lacks +hset"),
        (("-zscore", "-del"), "worker lacks +zscore +del"),
        (("resetchannels",), "worker lacks &stanchion:{default}:* +publish +subscribe"),
        (("-publish",), "worker lacks +publish"),
        (("-scan", "-time"), "worker lacks +time +scan"),
    ],
)
def test_a_right_that_is_missing_is_named_and_the_remedy_is_one(examined, server, taken, told):
    rules, *_ = documented("worker")
    server.execute("ACL", "SETUSER", "worker", *rules, *taken)
    status, found = examined(url_of("worker", server.url))
    assert (status, found["rights"]["found"]) == (1, told)
    server.execute(*found["rights"]["remedy"].split())
    status, found = examined(url_of("worker", server.url))
    assert (status, found["rights"]["status"]) == (0, "ok")


def test_a_user_who_cannot_even_say_its_name_does_not_get_in(run, server):
    rules, *_ = documented("worker")
    server.execute("ACL", "SETUSER", "worker", *rules, "-client|setname")
    status, out, err = run(url_of("worker", server.url))
    assert (status, out) == (3, "")
    assert "client|setname" in err


def test_a_user_without_scripts_is_told_so(examined, server):
    rules, *_ = documented("worker")
    server.execute("ACL", "SETUSER", "worker", *rules, "-eval", "-evalsha")
    status, found = examined(url_of("worker", server.url))
    assert status == 1
    assert {found[check]["status"] for check in ("scripts", "rights")} == {"error"}


# ---- no answer


def test_a_server_that_hangs_is_given_up_in_time(run, server):
    server.pause()
    began = time.monotonic()
    status, out, err = run(server.url, "--deadline", "0.4")
    assert time.monotonic() - began < 0.4 + 0.4
    assert (status, out) == (3, "")
    assert "cannot connect" in err


def test_a_server_that_hangs_half_way_is_given_up_in_time(examined, valkey):
    # Scripts wait, as they may write; the rest is answered.
    valkey.execute("CLIENT", "PAUSE", "60000", "WRITE")
    began = time.monotonic()
    status, found = examined(valkey.url, "--deadline", "0.4")
    assert time.monotonic() - began < 0.4 + 0.4
    valkey.execute("CLIENT", "UNPAUSE")
    assert status == 1
    assert found["version"]["status"] == "ok"
    assert found["scripts"]["found"] == "no answer within 0.4 s"


def test_nobody_there_is_no_connection(run):
    status, out, err = run(f"redis://127.0.0.1:{free_port()}/0")
    assert (status, out) == (3, "")
    assert "cannot connect" in err


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_wrong_password_is_no_connection_and_is_not_told(run, server, form):
    server.execute("ACL", "SETUSER", "worker", "on", ">another", "+@all", "~*", "&*")
    status, out, err = run(url_of("worker", server.url), *form)
    assert status == 3
    assert "the server refused the login" in err
    assert PASSWORD not in out + err
    if form:
        document = json.loads(out)
        assert document["url"].startswith("redis://worker:***@")
        assert [one["check"] for one in document["findings"]] == ["connection"]


def test_a_password_is_in_no_output(run, unix_server):
    rules = ("on", f">{PASSWORD}", "+@all", "~*", "&*")
    unix_server.execute("ACL", "SETUSER", "worker", *rules)
    url = f"{unix_server.url}&username=worker&password={PASSWORD}"
    for form in ((), ("--json",)):
        status, out, err = run(url, *form)
        assert status == 0
        assert PASSWORD not in out + err
        assert "worker" in out


@pytest.mark.parametrize(
    "words",
    [
        ("memory://",),
        ("http://localhost",),
        ("redis://localhost", "--namespace", "a b"),
        ("redis://localhost", "--deadline", "0"),
        ("embedded:///no/such/directory",),
    ],
)
def test_a_mistake_is_told_as_such(run, words):
    status, out, _ = run(*words)
    assert (status, out) == (2, "")


# ---- time


async def test_a_clock_that_is_wrong_is_told(examined, valkey):
    def later(seconds):
        def changed(link, reply):
            return re.sub(
                rb"^\*2\r\n\$10\r\n(\d{10})",
                lambda match: b"*2\r\n$10\r\n%d" % (int(match[1]) + seconds),
                reply,
            )

        return changed

    async with Proxy(valkey.port) as proxy:
        for seconds, status, told in ((60, "warning", "ahead of"), (-2, "hint", "behind")):
            proxy.on_reply = later(seconds)
            _, found = await asyncio.to_thread(examined, proxy.url)
            assert found["clock"]["status"] == status
            assert told in found["clock"]["found"]


async def test_a_server_that_is_far_away_is_told_and_measured_for_no_longer_than_there_is(
    examined, valkey
):
    async with Proxy(valkey.port) as proxy:
        proxy.delay = 0.01
        began = time.monotonic()
        status, found = await asyncio.to_thread(examined, proxy.url, "--deadline", "1.2")
        assert time.monotonic() - began < 1.2 + 0.4
    assert (status, found["latency"]["status"]) in {(0, "hint"), (0, "warning")}
    assert " of 50" not in found["latency"]["found"]


# ---- other ways to a server


def test_a_socket_and_a_server_of_our_own_need_no_tls(examined, unix_server):
    for url in (unix_server.url, "embedded://"):
        status, found = examined(url)
        assert (status, list(found)) == (0, EVERYWHERE)
        assert found["tls"]["found"].startswith("a unix socket")


def test_tls_is_verified_or_told(run, examined, tls_server):
    status, found = examined(tls_server.url)
    assert (status, found["tls"]["status"]) == (0, "ok")
    assert found["tls"]["found"].startswith("TLSv1.")
    assert "certificate ends in" in found["tls"]["found"]
    for option, told in (
        ("ssl_cert_reqs=none", "is not verified"),
        ("ssl_check_hostname=false", "for any host"),
    ):
        status, found = examined(f"{tls_server.url}&{option}")
        assert (status, found["tls"]["status"]) == (0, "warning")
        assert told in found["tls"]["found"]
    status, _, err = run(f"{tls_server.bare_url}?ssl_ca_certs={tls_server.other_ca_file}")
    assert status == 3
    assert "certificate" in err.lower()


def test_the_node_of_a_namespace_is_looked_at_and_all_slots_are(examined, cluster):
    for namespace in ("default", "another", "third"):
        status, found = examined(cluster.url, "--namespace", namespace)
        assert status == 0
        node = cluster.node_of(f"stanchion:{{{namespace}}}:circuits")
        assert found["cluster"]["status"] == "ok"
        assert f"3 primaries, 0 replicas; namespace {namespace} is on" in found["cluster"]["found"]
        assert found["cluster"]["found"].endswith(f":{node.port}")
        assert found["replication"]["status"] == "warning"


def test_a_slot_without_a_node_is_wrong(examined, cluster):
    key = "stanchion:{default}:circuits"
    node = cluster.node_of(key)
    lost = cluster.nodes.index(node) * -(-SLOTS // 3)
    assert lost != node.execute("CLUSTER", "KEYSLOT", key)
    # Also where the others go on without it.
    with node.configured(cluster_require_full_coverage="no"):
        node.execute("CLUSTER", "DELSLOTS", lost)
        try:
            status, found = examined(cluster.url)
        finally:
            node.execute("CLUSTER", "ADDSLOTS", lost)
    assert (status, found["cluster"]["status"]) == (1, "error")
    assert "16383 of 16384 slots served" in found["cluster"]["found"]


def test_sentinels_are_asked_one_by_one(examined, sentinel):
    status, found = examined(sentinel.url)
    assert (status, found["sentinel"]["status"]) == (0, "ok")
    assert found["sentinel"]["found"] == "3 of 3 answer, 3 know service, quorum 2"
    assert found["replication"]["found"].startswith("a primary, 1 of 1 replicas online")
    silent = sentinel.sentinels[2]
    silent.pause()
    status, found = examined(sentinel.url)
    silent.resume()
    assert (status, found["sentinel"]["status"]) == (0, "warning")
    assert found["sentinel"]["found"].endswith(f"silent: {silent.host}:{silent.port}")


def test_sentinels_that_do_not_answer_are_no_connection(run, sentinel):
    nobody = sentinel.url.replace("/service/", "/nobody/").replace("://", "://worker:secret@")
    for each in sentinel.sentinels:
        each.pause()
    began = time.monotonic()
    ends = [run(sentinel.url, "--deadline", "0.4")]
    assert time.monotonic() - began < 0.4 + 0.4
    for each in sentinel.sentinels:
        each.resume()
    ends.append(run(nobody))
    for status, out, err in ends:
        assert (status, out) == (3, "")
        assert err.endswith(": no sentinel that answers knows a primary of it")
        assert PASSWORD not in err


# ---- which version has the fix


@pytest.mark.parametrize(
    ("product", "shown", "status"),
    [
        *[("redis", shown, "error") for shown in ("6.2.20", "7.2.10", "7.4.5", "8.0.3", "8.2.1")],
        *[("redis", shown, "ok") for shown in ("7.2.11", "7.4.6", "8.0.4", "8.2.2", "8.4.0")],
        *[("redis", shown, "warning") for shown in ("7.0.15", "7.1.242")],
        *[("valkey", shown, "error") for shown in ("7.2.10", "8.0.5", "8.1.3")],
        *[("valkey", shown, "ok") for shown in ("7.2.11", "8.0.6", "8.1.4", "9.0.0", "9.1.2")],
        *[("valkey", shown, "warning") for shown in ("8.9.240",)],
        *[("redis", shown, "hint") for shown in ("", "of our own")],
    ],
)
def test_what_runs_an_attackers_code_is_known_by_its_version(product, shown, status):
    found = version({"server": product, "version": shown})
    assert found.status == status
    assert bool(found.remedy) == (status in {"error", "warning"})
