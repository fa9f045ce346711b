"""What a user's own type checker says of code that uses the library."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import pytest

ROOT = Path(__file__).parents[2]
CONFIGURATION = {
    "typeCheckingMode": "strict",
    "pythonVersion": "3.11",
    "reportUnnecessaryTypeIgnoreComment": "error",
    # It does not see that the loop of the README's program always runs.
    "reportPossiblyUnboundVariable": "none",
}


class Finding(TypedDict):
    file: str
    message: str
    rule: NotRequired[str]


class Report(TypedDict):
    generalDiagnostics: list[Finding]


def findings(directory: Path, **sources: str) -> dict[str, list[str]]:
    """Get the rules by which pyright, as strict as can be, refuses each of these modules."""
    program = Path(sys.prefix, "bin", "pyright")
    if not program.exists():
        pytest.skip("pyright is not installed: it comes with the extra dev")
    Path(directory, "pyrightconfig.json").write_text(json.dumps(CONFIGURATION))
    for name, source in sources.items():
        Path(directory, f"{name}.py").write_text(source)
    done = subprocess.run(
        [program, "--outputjson", "--pythonpath", sys.executable, "--project", directory],
        capture_output=True,
        text=True,
        check=False,
    )
    report = cast("Report", json.loads(done.stdout))
    found: dict[str, list[str]] = {name: [] for name in sources}
    for finding in report["generalDiagnostics"]:
        assert "rule" in finding, finding
        found[Path(finding["file"]).stem].append(finding["rule"])
    return found


def test_the_program_that_the_readme_shows_type_checks_and_mistakes_do_not(tmp_path: Path):
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", (ROOT / "README.md").read_text())
    here = Path(__file__).parent
    mistakes = (here / "mistakes.py").read_text()
    expected = re.findall(r"# pyright: ignore\[([^]]+)\]", mistakes)
    found = findings(
        tmp_path,
        readme=blocks[0],
        program=(here / "readme_program.py").read_text(),
        mistakes=mistakes,
        bare=re.sub(r"  # pyright: .*", "", mistakes),
    )
    assert found["readme"] == found["program"] == found["mistakes"] == []
    assert len(expected) > 10
    for rules in expected:
        assert set(rules.split(", ")) <= set(found["bare"])
    assert len(found["bare"]) >= len(expected)
