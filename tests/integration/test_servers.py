"""The test servers themselves: what they are, and what the checks around each test catch."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from redis.asyncio import Redis

from tests.leaks import running
from tests.waiting import eventually, eventually_sync

if TYPE_CHECKING:
    from tests.servers import RealServer
    from tests.topologies import Cluster, SentinelGroup, TLSServer, UnixServer

ROOT = Path(__file__).parents[2]
MAJOR = {
    "valkey9": ("valkey_version", "9."),
    "redis8": ("redis_version", "8."),
    "redis7": ("redis_version", "7."),
}


async def test_each_kind_of_store_has_a_url(store_url: str):
    assert store_url == "memory://" or store_url.startswith("redis://127.0.0.1:")


async def test_the_matrix_is_what_it_says(server: RealServer):
    async with server.client(decode_responses=True) as client:
        told = await client.info("server")
        field, major = MAJOR[server.name]
        assert told[field].startswith(major)
        assert (await client.config_get("bind"))["bind"] == "127.0.0.1"
        assert (await client.config_get("save"))["save"] == ""


@pytest.mark.parametrize("turn", [1, 2])
async def test_a_server_is_as_good_as_new(server: RealServer, turn: int):
    async with server.client(decode_responses=True) as client:
        assert await client.dbsize() == 0
        assert await client.acl_users() == ["default"]
        assert (await client.script_exists("e0e1f9fabfc9d4800c877a703b823ac0578ff8db")) == [False]
        assert "evalsha" not in server.commandstats()
        await client.set("somebody", turn)
        await client.acl_setuser("somebody", enabled=True)
        sha = await client.script_load("return 1")
        assert sha == "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"
        await client.evalsha(sha, 0)


@pytest.mark.parametrize("turn", [1, 2])
async def test_settings_that_a_test_left_are_gone(server: RealServer, turn: int):
    async with server.client(decode_responses=True) as client:
        assert await client.config_get("maxmemory") == {"maxmemory": "0"}
        await client.config_set("maxmemory", f"{turn}gb")


async def test_commands_are_counted(valkey: RealServer):
    async with valkey.client() as client:
        await client.ping()
        with valkey.counting() as counted:
            await client.eval("return redis.call('GET', KEYS[1])", 1, "k")
            await client.get("k")
    assert counted == {"eval": 1, "get": 2}


async def test_a_paused_server_does_not_answer_and_comes_back(server: RealServer):
    async with server.client(socket_timeout=0.1, retry=None) as client:
        await client.ping()
        server.pause()
        with pytest.raises(redis.TimeoutError):
            await client.ping()
        server.resume()
        await eventually(client.ping)


async def test_a_killed_server_refuses_and_restarts_empty_on_its_port(server: RealServer):
    async with server.client(retry=None) as client:
        await client.set("k", "v")
        url, pid = server.url, server.pid
        server.kill()
        with pytest.raises(redis.ConnectionError):
            await client.get("k")
        server.restart()
        assert await client.get("k") is None
        assert server.url == url
        assert server.pid != pid


async def test_a_server_sleeps_on_demand(server: RealServer):
    async with server.client(socket_timeout=0.1, retry=None) as sleeper:
        with pytest.raises(redis.TimeoutError):
            await sleeper.execute_command("DEBUG", "SLEEP", "0.3")


async def test_settings_last_for_the_block(valkey: RealServer):
    before = valkey.control.config_get("maxmemory", "hz")
    with valkey.configured(maxmemory="10mb", hz=50):
        assert valkey.control.config_get("maxmemory", "hz") != before
    assert valkey.control.config_get("maxmemory", "hz") == before


async def test_a_unix_socket(unix_server: UnixServer):
    assert unix_server.url.startswith("unix:///")
    async with unix_server.client() as client:
        assert await client.ping()
        assert (await client.config_get("port"))["port"] == "0"


async def test_tls_and_the_authority_that_signed(tls_server: TLSServer):
    async with tls_server.client() as client:
        assert await client.ping()
    url = f"{tls_server.bare_url}?ssl_ca_certs={tls_server.other_ca_file}"
    async with Redis.from_url(url, retry=None) as stranger:
        with pytest.raises(redis.ConnectionError) as refused:
            await stranger.ping()
        assert "CERTIFICATE_VERIFY_FAILED" in str(refused.value)


async def test_a_cluster_of_three(cluster: Cluster):
    async with cluster.client(decode_responses=True) as client:
        keys = [f"stanchion:{{n{number}}}:k" for number in range(30)]
        for key in keys:
            await client.set(key, key, px=60_000)
        assert [await client.get(key) for key in keys] == keys
    assert {cluster.node_of(key).name for key in keys} == {node.name for node in cluster.nodes}
    for key in keys:
        assert cluster.node_of(key).execute("GET", key) == key


async def test_a_cluster_node_comes_back(cluster: Cluster):
    node = cluster.nodes[1]
    node.restart()
    assert node.execute("CLUSTER", "MYID")
    await eventually(cluster.ready, 20)


async def test_sentinels_and_a_failover(sentinel: SentinelGroup):
    primary, replica = sentinel.primary, sentinel.replica
    primary.execute("SET", "k", "v")
    await eventually(lambda: replica.execute("GET", "k") == "v")
    sentinel.failover()
    assert sentinel.primary is replica
    replica.execute("SET", "k", "w")


async def test_sentinels_see_a_killed_primary(sentinel: SentinelGroup):
    replica = sentinel.replica
    sentinel.primary.kill()
    await eventually(lambda: sentinel.primary is replica, 20)


async def test_waiting_ends_with_the_condition_or_with_the_deadline():
    seen: list[int] = []

    async def third() -> str:
        seen.append(1)
        assert len(seen) >= 3, "not yet"
        return "there"

    assert await eventually(third) == "there"
    assert eventually_sync(lambda: len(seen) == 3)
    with pytest.raises(AssertionError, match=r"the moon did not hold within 0.05 s; last: \[\]"):
        await eventually(list, 0.05, what="the moon")
    seen.clear()
    with pytest.raises(AssertionError, match="not yet"):
        await eventually(third, 0)
    with pytest.raises(AssertionError, match="last: 0"):
        eventually_sync(int, 0.05)


LEAKY = """
import asyncio, subprocess
from tests import leaks

leaks.GRACE = 0.3
kept = []

def test_leaks_a_process():
    kept.append(subprocess.Popen(["sleep", "60"]))

def test_leaks_a_process_that_left_the_family():
    subprocess.run(["sh", "-c", "setsid sleep 61 &"], check=True)

async def test_leaks_a_task():
    kept.append(asyncio.create_task(asyncio.sleep(60)))

def test_leaks_a_connection(valkey):
    kept.append(valkey.sync_client())
    kept[-1].ping()

def test_leaks_a_key(valkey):
    valkey.execute("SET", "stanchion:{n}:rate:p:-", 1)

def test_leaks_a_key_elsewhere(valkey):
    with valkey.sync_client(db=3) as client:
        client.set("stanchion:{n}:rate:p:-", 1)

def test_clean_with_keys_that_may_stay(valkey):
    valkey.execute("SET", "somebody-else", 1)
    valkey.execute("SET", "stanchion:{n}:overrides", 1)
    valkey.execute("SET", "stanchion:{n}:rate:p:-", 1, "PX", 60000)

def test_clean_with_a_killed_server(valkey):
    valkey.kill()

def test_clean_with_a_paused_server(valkey):
    assert valkey.execute("DBSIZE") == 0
    valkey.pause()

async def test_clean_with_all_closed(valkey):
    task = asyncio.create_task(asyncio.sleep(60))
    async with valkey.client() as client:
        await client.ping()
    task.cancel()
"""


def test_a_test_that_leaks_fails(tmp_path: Path):
    done = run_pytest(tmp_path, LEAKY, "-rA", "--tb=line")
    outcomes = re.findall(r"^(ERROR|FAILED|PASSED) \S*::(\w+)", done.stdout, re.MULTILINE)
    # What leaks is told after the test itself has passed.
    broken = {name for outcome, name in outcomes if outcome != "PASSED"}
    every = re.findall(r"def (test_\w+)", LEAKY)
    assert broken == {name for name in every if "_leaks_" in name}, done.stdout
    assert {name for _, name in outcomes} == set(every), done.stdout


def test_a_killed_test_session_leaves_no_server(tmp_path: Path):
    killed = """
import os

def test_it(valkey):
    print("server", valkey.pid, valkey.directory, flush=True)
    os.kill(os.getpid(), 9)
"""
    done = run_pytest(tmp_path, killed, "--capture=no")
    assert done.returncode == -signal.SIGKILL
    pid, directory = re.findall(r"server (\d+) (\S+)", done.stdout)[0]
    eventually_sync(lambda: not running(int(pid)), what="the server is gone")
    eventually_sync(lambda: not Path(directory).exists(), what="its directory is gone")


def run_pytest(place: Path, tests: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run some tests in a session of their own, with this project's settings and fixtures."""
    file = place / "test_inner.py"
    file.write_text(tests)
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT),
            *("-p", "tests.conftest", "-p", "no:cacheprovider", *options, file),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
