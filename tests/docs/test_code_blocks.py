"""Every program in the README and the docs runs as it stands, and prints what stands below it."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?://)([^)#]+)")


@dataclass(frozen=True)
class Program:
    page: Path
    line: int
    text: str
    output: str


def programs() -> list[Program]:
    found: list[Program] = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Program(page, line, match[1], match[2] or ""))
    return found


PROGRAMS = programs()


def steady(output: str) -> str:
    """Leave out what depends on how many tenths of a second a machine took."""
    return re.sub(r"^(calls +ok) 9\d of 600$", r"\1 9x of 600", output, flags=re.MULTILINE)


def test_there_are_programs_to_run():
    assert {program.page.name for program in PROGRAMS} >= {"README.md", "policies.md"}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: f"{p.page.stem}:{p.line}")
def test_a_program_prints_what_the_page_says(program: Program, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program.text],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=30,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert steady(done.stdout) == steady(program.output)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    links = _LINK.findall(page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
