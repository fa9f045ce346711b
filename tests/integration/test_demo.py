"""The demo as a person runs it: processes of its own, a real server, and its own verdict."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from stanchion.cli.demo.records import Asked, Closing, Ended, read_journal
from tests import leaks
from tests.waiting import eventually_sync

DEMO = (sys.executable, "-m", "stanchion", "demo")
POLICIES = {"provider", "calls", "tokens", "in-flight", "searches"}
PATIENCE = 50.0


def demo(*words, **options):
    return subprocess.run(
        [*DEMO, *words], capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )


@contextmanager
def started(*words):
    """A demo that a test does not see to its end; what it writes goes to its pipes."""
    process = subprocess.Popen(
        [*DEMO, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def workers():
    return [pid for pid, process in leaks.descendants().items() if "demo.worker" in process.command]


def under_way(logs):
    """Whether calls have been admitted by every worker."""
    journals = list(logs.glob("*.jsonl"))
    return len(journals) == 4 and all(
        any('"ended"' in line for line in journal.read_text().splitlines()) for journal in journals
    )


def test_a_run_keeps_every_limit_and_proves_it(tmp_path):
    """One run, looked at from all sides: a run takes seconds."""
    done = demo("--seconds", "9", "--json", "--logs", str(tmp_path))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["ok"]
    assert all(check["ok"] for check in summary["checks"])

    # Policies have admitted and refused, each for its own reason.
    policies = {row["policy"]: row for row in summary["policies"]}
    assert policies.keys() == POLICIES
    for name, row in policies.items():
        assert row["admitted"] > 20, name
        assert sum(row["reasons"].values()) == row["vetoed"]
    # A denial that a worker keeps names the policy that is known to refuse, and no other: one of
    # them may have had nothing to say.
    assert sum(row["vetoed"] > 0 for row in policies.values()) >= len(POLICIES) - 1
    assert "quota_exhausted" in policies["tokens"]["reasons"]
    assert "no_free_slot" in policies["in-flight"]["reasons"]
    assert "circuit_open" in policies["provider"]["reasons"]
    assert summary["totals"]["signals"].keys() == {"retry", "skip", "fallback"}
    assert summary["totals"]["again_admitted"] > 0

    # The limits were used, and none was exceeded.
    assert max(row["by_logs"] for row in summary["slots"]) == 6
    assert max(row["by_endpoint"] for row in summary["slots"]) <= 6
    fullest = [max(w["settled"] for w in row["windows"]) for row in summary["quotas"]]
    assert len(fullest) == 2
    assert all(
        0.9 * row["limit"] < most <= row["limit"]
        for row, most in zip(summary["quotas"], fullest, strict=True)
    )
    assert all(
        row["counted"][0] <= row["counter"] <= row["counted"][1] for row in summary["quotas"]
    )
    assert summary["billed"] == summary["spent"] > 10_000

    # The circuit tripped, was probed, and closed again; everybody heard of it.
    (circuit,) = [line for line in summary["circuits"] if line["phases"]]
    states = [phase["state"] for phase in circuit["phases"]]
    assert states[0] == "open"
    assert states[-1] == "closed"
    assert "half_open" in states
    for phase in circuit["phases"]:
        assert phase["learned"].keys() == {"0", "1", "2", "3", "4"}
        assert all(0 <= delay < 2.0 for delay in phase["learned"].values())
        assert phase["missed"] == []

    assert summary["keys"] >= len(POLICIES)
    assert summary["immortal"] == []
    assert summary["events_dropped"] == 0

    # What was printed meanwhile.
    assert re.search(r"redis-cli -s /\S+/server\.sock --eval \S*lua/inspect\.lua ", done.stderr)
    assert "stanchion inspect --url unix:///" in done.stderr
    assert "the provider of large is failing" in done.stderr

    # The figures are those of the logs.
    logs = [read_journal(path) for path in sorted(tmp_path.glob("*.jsonl"))]
    records = [record for log in logs for record in log]
    assert len(logs) == 4
    asked = [record for record in records if isinstance(record, Asked)]
    assert len(asked) == summary["totals"]["asked"]
    assert sum(record.allowed for record in asked) == summary["totals"]["admitted"]
    # What a worker denied by itself, the server was not asked about.
    assert all(record.at_us is not None for record in asked if record.allowed)
    spent = sum(record.tokens or 0 for record in records if isinstance(record, Ended))
    assert spent == summary["spent"]
    closing = [record for record in records if isinstance(record, Closing)]
    assert len(closing) == 4
    seen = {kind for record in closing for kind in record.observed}
    assert {
        "pipeline:started", "pipeline:completed", "wave:started", "wave:completed",
        "node:started", "node:completed", "node:skipped", "llm:prompt", "llm:response",
        "tool:called", "tool:completed", "policy:vetoed", "circuit:opened",
    } <= seen  # fmt: skip


def test_recorded_calls_are_each_asked_for_once_on_a_server_that_others_use(tmp_path, valkey):
    valkey.execute("SET", "stanchion:{default}:mine", "kept", "EX", "60")
    trace = tmp_path / "trace.csv"
    moments = (f"2023-11-16 18:00:{n // 20:02}.{n % 20 * 50_000:06}0" for n in range(600))
    lines = [f"{at},{100 + n % 700},{n % 90}" for n, at in enumerate(moments)]
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(lines) + "\n")
    words = ("--url", valkey.url, "--workers", "2", "--trace", str(trace), "--speed", "10")
    done = demo(*words, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["totals"]["asked"] == 600
    assert summary["totals"]["again"] == 0
    assert summary["totals"]["admitted"] > 200
    assert summary["billed"] == summary["spent"]
    assert any("600 calls" in line for line in summary["run"]["story"])
    assert summary["run"]["url"] == valkey.url
    # It keeps to a namespace of its own, and what it leaves there ends by itself.
    namespace = summary["run"]["namespace"]
    assert valkey.execute("GET", "stanchion:{default}:mine") == "kept"
    left = dict(valkey.keys())
    assert len(left) > 1
    assert all(key.startswith(f"stanchion:{{{namespace}}}:") for key in left if "mine" not in key)
    assert all(ttl > 0 for ttl in left.values())


def test_lines_for_people_when_piped(tmp_path):
    """Interrupted after a while, so that it is short: the summary so far is shown all the same."""
    with started("--logs", str(tmp_path)) as process:
        eventually_sync(lambda: under_way(tmp_path), PATIENCE)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err.startswith("stanchion: interrupted; all ")
    assert "Counted again from the workers' own logs" in out
    assert re.search(r"ok +rates", out)
    assert re.search(r"in-flight +6 at once +model", out)
    assert "\x1b" not in out
    assert workers() == []


def test_a_second_interrupt_leaves_at_once(tmp_path):
    with started("--logs", str(tmp_path)) as process:
        eventually_sync(lambda: under_way(tmp_path), PATIENCE)
        first = workers()
        for pid in first:
            # So that the end is not reached in good order.
            os.kill(pid, signal.SIGSTOP)

        def interrupted():
            process.send_signal(signal.SIGINT)
            return process.poll() is not None

        # More than once, since two signals at the same moment are one.
        eventually_sync(interrupted, 10.0, interval=0.1)
    assert process.returncode == 130
    assert len(first) == 4
    assert workers() == []


def test_a_worker_that_dies_fails_the_run_and_is_named(tmp_path):
    with started("--logs", str(tmp_path)) as process:
        eventually_sync(lambda: under_way(tmp_path), PATIENCE)
        victim = workers()[0]
        os.kill(victim, signal.SIGKILL)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert re.search(rf"every worker lived: worker \d \(pid {victim}\) was killed by signal 9", err)
    assert "Counted again" in out
    assert workers() == []


def test_nothing_outlives_a_demo_that_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = set(leaks.descendants())
    with started() as process:
        eventually_sync(lambda: len(workers()) == 4, PATIENCE)
        eventually_sync(lambda: len(list(tmp_path.glob("*/worker-*.jsonl"))) == 4, PATIENCE)
        process.kill()
        process.communicate()
    eventually_sync(lambda: set(leaks.descendants()) <= before, 10.0)
    # Neither the server's directory nor that of the logs.
    eventually_sync(lambda: list(tmp_path.iterdir()) == [], 10.0)


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc to see processes")
def test_an_interrupt_before_it_has_begun_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with started() as process:
        eventually_sync(lambda: len(workers()) > 0, PATIENCE)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "interrupted" in err
    assert workers() == []
    assert list(tmp_path.iterdir()) == []
