"""The benchmarks run: each by itself, from a checkout, with peers installed or not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FILES = sorted(BENCHMARKS.glob("*.py"))
PROCESSES = "hot_key"  # it starts four, which takes as long as all the others


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


@pytest.mark.parametrize("name", [file.stem for file in FILES if file.stem != PROCESSES])
def test_a_benchmark_measures_and_writes_what_it_printed(name: str, tmp_path: Path):
    shown = run(name, "--quick", "--rounds", "1", "--only", "stanchion", "--json", tmp_path)
    document = json.loads((tmp_path / f"{name}.json").read_text())
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
