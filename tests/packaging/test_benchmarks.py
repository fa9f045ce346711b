"""The benchmarks run: each by itself, from a checkout, with peers installed or not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FILES = sorted(BENCHMARKS.glob("*.py"))
PROCESSES = "hot_key"  # it starts four, which takes as long as all the others
MEASURED = [file.stem for file in FILES if file.stem != PROCESSES]


class Run(NamedTuple):
    output: Future[str]
    figures: Path


def run(name: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", BENCHMARKS / f"{name}.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def test_there_are_benchmarks_to_run():
    assert len(FILES) >= 9


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Run]]:
    """Run them all at once: how long each takes is set by the clock, not by what it gets done."""
    folder = tmp_path_factory.mktemp("figures")
    options = ("--quick", "--rounds", "1", "--only", "stanchion", "--json", folder)
    with ThreadPoolExecutor(len(FILES)) as pool:
        shown = {name: pool.submit(run, name, *options) for name in MEASURED}
        yield {name: Run(output, folder / f"{name}.json") for name, output in shown.items()}


@pytest.mark.parametrize("name", MEASURED)
def test_a_benchmark_measures_and_writes_what_it_printed(name: str, runs: Mapping[str, Run]):
    shown = runs[name].output.result()
    document = json.loads(runs[name].figures.read_text())
    assert document["question"] == name
    assert document["machine"]["versions"]["stanchion"] in shown
    for results in document["results"].values():
        (figures,) = results["rounds"]["stanchion"]
        assert all(figure > 0 for figure in figures.values())
    for table in document["tables"]:
        assert table["title"] in shown
        assert table["rows"][0][0] == "stanchion"


def test_the_benchmark_of_many_processes_tells_its_options():
    assert "--rounds" in run(PROCESSES, "--help")


def test_a_peer_is_measured_or_named_as_left_out():
    shown = run("breaker", "--quick", "--rounds", "1", "--only", "purgatory")
    lines = [line.strip() for line in shown.splitlines()]
    left_out = "left out: purgatory: purgatory is not installed" in lines
    measured = any(line.startswith("purgatory ") for line in lines)
    assert left_out != measured


def test_a_name_that_is_nobody_measures_nothing_and_says_so():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "breaker.py", "--quick", "--only", "nobody"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert "no contender of that name (nobody)" in done.stderr
