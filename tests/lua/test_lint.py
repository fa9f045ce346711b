"""luacheck over the scripts as they are sent.

fakeredis lets an undefined global pass, and a real server meets it only on the branch that has it.
"""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from stanchion.store.keys import Kind
from stanchion.store.scripts import Script, ScriptName, load_scripts
from tests.servers import missing

ROOT = Path(__file__).parents[2]
LOADED = load_scripts()
SCRIPTS = tuple(LOADED.get(name) for name in ScriptName)
#: As a call has them that needs one kind of limit, and what it may need with it.
LEAN = tuple(
    pytest.param(LOADED.get(name, frozenset(needed)), id="-".join((name, *needed)))
    for name in (ScriptName.ADMIT, ScriptName.PEEK, ScriptName.SETTLE, ScriptName.RENEW)
    for needed in (*([kind.script_name] for kind in Kind), ["slots", "subjects"], ["gcra", "cold"])
)
UNUSED = "W211"


class Finding(NamedTuple):
    code: str
    message: str
    line: str

    def __str__(self) -> str:
        return f"{self.line.strip()}\n    ({self.code}) {self.message}"


@pytest.fixture(scope="module")
def luacheck() -> str:
    program = shutil.which("luacheck")
    if program is None:
        missing("luacheck is not installed (Debian: apt-get install lua-check)")
    return program


def findings(luacheck: str, text: str) -> list[Finding]:
    options = ("--config", ROOT / ".luacheckrc", "--no-cache", "--codes", "--formatter", "plain")
    done = subprocess.run(
        (luacheck, *options, "-"), input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1, 2), done.stdout + done.stderr
    found = re.findall(r"^stdin:(\d+):\d+: \((\w+)\) (.*)$", done.stdout, re.MULTILINE)
    assert len(found) == len(done.stdout.splitlines()), done.stdout
    lines = text.splitlines()
    return [Finding(code, message, lines[int(number) - 1]) for number, code, message in found]


@pytest.mark.parametrize(
    "script", [*(pytest.param(script, id=script.name) for script in SCRIPTS), *LEAN]
)
def test_a_composed_script_is_clean(luacheck: str, script: Script) -> None:
    # What one script leaves unused of an include, another may use: see the next test.
    wrong = [str(found) for found in findings(luacheck, script.text) if found.code != UNUSED]
    assert not wrong, "\n".join(wrong)


def test_what_an_include_defines_is_used_by_some_script(luacheck: str) -> None:
    unused = Counter(
        line
        for script in SCRIPTS
        for line in {
            found.line for found in findings(luacheck, script.text) if found.code == UNUSED
        }
    )
    present = Counter(line for script in SCRIPTS for line in set(script.text.splitlines()))

    assert not [line.strip() for line, count in unused.items() if count == present[line]]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("return os.time()", "W113"),
        ("return bit.band(1, 2)", "W113"),
        ("return cmsgpack.pack(1)", "W113"),
        ("return redis.sha1hex('')", "W143"),
        ("count = 1", "W111"),
        ("local kept = 1", UNUSED),
        ("return", None),
    ],
)
def test_the_lint_refuses_what_some_server_lacks(
    luacheck: str, text: str, code: str | None
) -> None:
    assert [found.code for found in findings(luacheck, text)] == [code] * (code is not None)
