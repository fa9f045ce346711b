"""The benchmarks run: each by itself, from a checkout, with peers installed or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
FILES = sorted(BENCHMARKS.glob("*.py"))
PROCESSES = "hot_key"  # as many as prefetch.py starts, and again as long
MEASURED = [file.stem for file in FILES if file.stem != PROCESSES]
MAY_BE_NONE = {"over"}
RUNNER = """
import pathlib, sys
sys.path.insert(0, {benchmarks!r})
import prefetch
print(prefetch.most_over({moments}, burst=3, per_second=2.0))
"""


class Run(NamedTuple):
    output: Future[str]
    figures: Path


def run(name: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", BENCHMARKS / f"{name}.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def test_there_are_benchmarks_to_run():
    assert len(FILES) >= 11


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Run]]:
    """Run them all at once: how long each takes is set by the clock, not by what it gets done."""
    folder = tmp_path_factory.mktemp("figures")
    options = ("--quick", "--rounds", "1", "--only", "stanchion", "--json", folder)
    with ThreadPoolExecutor(len(FILES)) as pool:
        shown = {name: pool.submit(run, name, *options) for name in MEASURED}
        # What still runs when the first test ends would be a process that it left behind.
        wait(shown.values())
        yield {name: Run(output, folder / f"{name}.json") for name, output in shown.items()}


@pytest.mark.parametrize("name", MEASURED)
def test_a_benchmark_measures_and_writes_what_it_printed(name: str, runs: Mapping[str, Run]):
    shown = runs[name].output.result()
    document = json.loads(runs[name].figures.read_text())
    assert document["question"] == name
    assert document["machine"]["versions"]["stanchion"] in shown
    for results in document["results"].values():
        assert results["rounds"]["stanchion"]
        for figures in results["rounds"]["stanchion"]:
            assert all(taken > 0 for figure, taken in figures.items() if figure not in MAY_BE_NONE)
    for table in document["tables"]:
        assert table["title"] in shown
        assert table["rows"][0][0] == "stanchion"
    for goal in document["goals"]:
        assert f"goal: {goal['what']}: " in shown


def test_the_benchmark_of_many_processes_tells_its_options():
    assert "--rounds" in run(PROCESSES, "--help")


@pytest.mark.parametrize(
    ("moments", "over"),
    [
        ([], 0.0),
        ([0.0, 0.0, 0.0], 0.0),
        ([0.0, 0.0, 0.0, 0.0], 1.0),
        ([0.0, 0.0, 0.0, 0.5, 1.0], 0.0),
        ([0.0, 5.0, 5.0, 5.0, 5.5, 5.75], 0.5),
        ([9.0, 0.0, 0.0, 9.0, 0.0, 9.0, 9.0, 9.0], 2.0),
    ],
)
def test_what_was_admitted_over_a_limit_is_counted_in_the_worst_of_all_spans(
    moments: list[float], over: float
):
    program = RUNNER.format(benchmarks=str(BENCHMARKS), moments=moments)
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert float(shown.stdout) == pytest.approx(over)


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


def test_the_loop_that_was_asked_for_is_the_one_that_is_named():
    asked = ("--quick", "--rounds", "1", "--only", "stanchion", "--loop", "asyncio")
    assert "asyncio as the event loop of all" in run("one_caller", *asked)


def test_a_picture_is_drawn_or_what_is_missing_for_it_named(tmp_path: Path):
    asked = ("--quick", "--rounds", "1", "--only", "stanchion", "--plot", tmp_path)
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "one_caller.py", *asked],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    if find_spec("matplotlib") is None:
        assert done.returncode == 1
        assert "pip install 'stanchion[bench]'" in done.stderr
    else:
        assert (tmp_path / "one_caller.png").read_bytes().startswith(b"\x89PNG")


def publish(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.publish", *arguments],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_the_pages_show_the_figures_that_lie_beside_them():
    done = publish("--check")
    assert done.stderr == ""
    assert done.returncode == 0


def test_a_page_gets_the_figures_between_its_marks_and_stays_as_it_is_around_them(
    tmp_path: Path, runs: Mapping[str, Run]
):
    figures = tmp_path / "docs" / "benchmarks"
    figures.mkdir(parents=True)
    runs["one_caller"].output.result()
    (figures / "one_caller.json").write_text(runs["one_caller"].figures.read_text())
    page = tmp_path / "docs" / "benchmarks.md"
    page.write_text(
        "before\n## One, alone\n<!-- figures: one_caller -->\nold\n<!-- end of figures -->\nafter\n"
    )
    (tmp_path / "README.md").write_text("<!-- figures: machine -->\n<!-- end of figures -->\n")
    assert publish("--root", tmp_path, "--check").returncode == 1
    assert publish("--root", tmp_path).returncode == 0
    assert publish("--root", tmp_path, "--check").returncode == 0
    text = page.read_text()
    assert text.startswith("before\n## One, alone\n<!-- figures: one_caller -->\n")
    assert text.endswith("<!-- end of figures -->\nafter\n")
    assert "old" not in text
    assert json.loads(runs["one_caller"].figures.read_text())["tables"][0]["title"] in text
