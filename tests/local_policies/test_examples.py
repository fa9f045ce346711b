"""The examples run by themselves, and do what they say."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

PRINTED = {
    "orchestrator": """
greeting: skipped: small talk needs no model
outline: large -> small: the large model is for answers
outline: a word from small
answer: a word from large
review: large -> small: the large model is for answers
review: waits: limit_reached
review: a word from small
flaky: attempt 1 failed: the provider did not answer
flaky: attempt 2 failed: the provider did not answer
pipeline failed: flaky: no-third-attempt: two attempts are enough
""",
    "kill_switch": """
before: True
halted: halted | llm:* tenant=acme, by alice: runaway costs
others: True
listed: llm:* tenant=acme by alice
after: True
""",
    "redaction": """
prompt: card, email
Reply to [email], card [card]
the model saw: Call [phone]
secret | prompt: secret:github-pat
""",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run them all at once: each mostly waits."""
    folder = tmp_path_factory.mktemp("examples")

    def run(name):
        return subprocess.run(
            [sys.executable, "-W", "error", EXAMPLES / f"{name}.py"],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            timeout=30,
        )

    with ThreadPoolExecutor(len(PRINTED)) as pool:
        yield {name: pool.submit(run, name) for name in PRINTED}


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_is_written_here(name, runs):
    done = runs[name].result()
    assert (done.stderr, done.returncode) == ("", 0)
    # How often it has to wait there depends on the machine.
    lines = [line for line in done.stdout.splitlines() if not line.startswith("flaky: waits")]
    assert "\n".join(lines) == PRINTED[name].strip()
