"""Fills the pages with the figures that were measured, between the marks that stand in them.

    <!-- figures: one_rate_limit -->         the tables, goals and picture of one question
    <!-- figures: machine -->                what it was measured on
    <!-- figures: goals [QUESTION...] -->    all goals, or those of some questions
    <!-- end of figures -->

`--measure` runs the questions of which the first page shows figures, or those that are named.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from harness.report import Goal, Table

ROOT = Path(__file__).parents[2]
PAGE = Path("docs/benchmarks.md")
FIGURES = Path("docs/benchmarks")
READERS = (PAGE, Path("README.md"))

_MARKED = re.compile(
    r"(?P<mark><!-- figures: (?P<asked>[^\n]+?) -->\n).*?(?P<end><!-- end of figures -->)",
    re.DOTALL,
)
_SPREAD = ", lowest and highest round: "
#: What makes a figure another one.
_SAME = ("cpu", "cores", "system", "python", "loop", "server")

Document = dict[str, Any]


class Figures:
    """What was measured, question by question, for the pages below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._page = (root / PAGE).read_text("utf-8")
        self.questions = [
            asked for asked in _asked(self._page) if asked.split()[0] not in {"machine", "goals"}
        ]
        self._documents: dict[str, Document] = {}
        for question in self.questions:
            file = root / FIGURES / f"{question}.json"
            if file.exists():
                self._documents[question] = json.loads(file.read_text("utf-8"))
        machines = Counter(_machine(document) for document in self._documents.values())
        self._usual = machines.most_common(1)[0][0] if machines else ""

    def filled(self, page: Path) -> str:
        """Get the page with what belongs between its marks."""
        text = (self._root / page).read_text("utf-8")
        return _MARKED.sub(
            lambda found: found["mark"] + self._shown(found["asked"], page) + found["end"], text
        )

    def _shown(self, asked: str, page: Path) -> str:
        word, *questions = asked.split()
        if word == "machine":
            return self._told_machine()
        if word == "goals":
            return self._told_goals(questions or self.questions, page)
        if word not in self._documents:
            return "\n(not measured)\n\n"
        return self._told_question(word, self._documents[word])

    def _told_machine(self) -> str:
        loads = [document["machine"]["load"] for document in self._documents.values()]
        versions: dict[str, str] = {}
        for document in self._documents.values():
            versions |= document["machine"]["versions"]
        listed = ", ".join(f"{name} {version}" for name, version in versions.items())
        return (
            f"\n```text\n{self._usual}\n"
            f"load average when each began: {min(loads)} to {max(loads)}\n{listed}\n```\n\n"
        )

    def _told_goals(self, questions: list[str], page: Path) -> str:
        lines = ["", "| question | goal | measured | |", "| --- | --- | --- | --- |"]
        beside = os.path.relpath(PAGE, page.parent) if page != PAGE else ""
        for question in questions:
            link = f"[{question}]({beside}#{_slug(self._page, question)})"
            for told in self._documents.get(question, {}).get("goals", ()):
                goal = Goal(**told)
                reached = "reached" if goal.reached else "missed"
                lines.append(f"| {link} | {goal.what}: {goal.asked} | {goal.found} | {reached} |")
        if page != PAGE:
            lines += ["", self._usual.replace("\n", ", ") + "."]
        return "\n".join([*lines, "", ""])

    def _told_question(self, question: str, document: Document) -> str:
        texts: list[str] = []
        for told in document["tables"]:
            notes = [note for note in told["notes"] if _SPREAD not in note]
            texts.append(Table(told["title"], told["heads"], told["rows"], notes).text())
        told = "\n\n".join(texts)
        goals = "".join(f"- {Goal(**goal)}\n" for goal in document["goals"])
        shown = f"\n```text\n{told}\n```\n\n"
        if (machine := _machine(document)) != self._usual:
            shown += f"Measured on: {machine}\n\n".replace("\n", " ").rstrip() + "\n\n"
        if goals:
            shown += goals + "\n"
        if (self._root / FIGURES / f"{question}.png").exists():
            shown += f"![{question}]({FIGURES.name}/{question}.png)\n\n"
        return shown


def _asked(text: str) -> list[str]:
    return [found["asked"] for found in _MARKED.finditer(text)]


def _machine(document: Document) -> str:
    machine = document["machine"]
    cpu, cores, system, python, loop, server = (machine[name] for name in _SAME)
    return (
        f"{cpu}, {cores} cores shared with the server and other work, {system}\n"
        f"{python}, {loop} as the event loop of all, {server}, "
        f"medians of {document['rounds']} rounds"
    )


def _slug(page: str, question: str) -> str:
    """Get the anchor of the heading under which a question's figures stand."""
    before = page.partition(f"<!-- figures: {question} -->")[0]
    heading = before.rpartition("\n#")[2].partition("\n")[0].lstrip("#").strip()
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def measure(root: Path, question: str, options: list[str]) -> bool:
    program = root / "benchmarks" / f"{question}.py"
    into = root / FIGURES
    into.mkdir(exist_ok=True)
    print(f"== {question}", flush=True)
    asked = [sys.executable, program, "--json", into, "--plot", into, *options]
    return subprocess.run(asked, check=False).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m harness.publish", description=__doc__)
    parser.add_argument("questions", nargs="*", help="which to measure, of those on the page")
    parser.add_argument(
        "--measure", action="store_true", help="measure before the pages are filled"
    )
    parser.add_argument(
        "--check", action="store_true", help="only see whether the pages are filled"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="where docs/ and README.md are")
    asked, options = parser.parse_known_args()
    known = Figures(asked.root).questions
    if strangers := set(asked.questions) - set(known):
        sys.exit(f"{PAGE} has no figures of {', '.join(sorted(strangers))}")
    failed: list[str] = []
    if asked.measure:
        questions = asked.questions or known
        failed = [which for which in questions if not measure(asked.root, which, options)]
    figures = Figures(asked.root)
    stale: list[Path] = []
    for page in READERS:
        filled = figures.filled(page)
        if filled != (asked.root / page).read_text("utf-8"):
            stale.append(page)
            if not asked.check:
                (asked.root / page).write_text(filled, "utf-8")
    if failed:
        sys.exit(f"failed, and not replaced on the pages: {', '.join(failed)}")
    if asked.check and stale:
        sys.exit(f"not what was measured: {', '.join(map(str, stale))}")


if __name__ == "__main__":
    main()
