"""What is handed out: the sdist, the wheel built from it, and what they do in an empty environment.

A working tree hides packaging mistakes: an editable install finds the scripts in ./lua, and the
linters' and tests' own dependencies satisfy imports that nobody declared.
"""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio
from pathlib import Path
import sys

import stanchion
from stanchion import Event, EventBus, RateLimit

class Call(Event, type="packaging:call"):
    pass

async def main():
    limit = RateLimit(name="calls", on=Call, limit=1, per="1h")
    async with EventBus.from_url("memory://", policies=[limit]) as bus:
        return [(await bus.check(Call())).allowed for _ in range(2)]

assert Path(stanchion.__file__).is_relative_to(sys.prefix), stanchion.__file__
print(asyncio.run(main()))
"""


class Built(NamedTuple):
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("dist")
    # `build` makes the wheel from the unpacked sdist, as an installer does.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return Built(sdist, wheel)


def run(*command: str | Path, ok: bool = True) -> str:
    """Get what a command printed, on both streams; `ok` is whether it must succeed or must fail."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=50,
        cwd=ROOT.anchor,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        check=False,
    )
    assert (done.returncode == 0) is ok, f"{command} exited {done.returncode}:\n{done.stdout}"
    return done.stdout


def files(folder: Path, pattern: str, under: str) -> set[str]:
    return {f"{under}/{path.relative_to(folder).as_posix()}" for path in folder.rglob(pattern)}


def test_the_wheel_holds_every_module_and_script_and_nothing_else(built: Built) -> None:
    modules = files(ROOT / "src" / "stanchion", "*.py", "stanchion")
    scripts = files(ROOT / "lua", "*.lua", "stanchion/lua")
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    assert modules
    assert scripts

    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())

    assert {name for name in names if ".dist-info/" not in name} == (
        modules | scripts | {"stanchion/py.typed"}
    )
    assert {name.partition(".dist-info/")[2] for name in names if ".dist-info/" in name} == about


def test_the_sdist_can_be_tested_and_carries_nothing_private(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}

    assert names >= files(ROOT / "src", "*.py", "src")
    assert names >= files(ROOT / "lua", "*.lua", "lua")
    assert names >= files(ROOT / "tests", "*.py", "tests")
    assert {name.partition("/")[0] for name in names} == {
        ".gitignore",
        ".luacheckrc",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "Makefile",
        "PKG-INFO",
        "README.md",
        "benchmarks",
        "deploy",
        "docs",
        "examples",
        "lua",
        "pyproject.toml",
        "src",
        "tests",
    }


def required(dist: Distribution, extras: Iterable[str]) -> Iterator[Requirement]:
    for text in dist.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def link_dependencies(folder: Path, dist: Distribution, extras: tuple[str, ...]) -> None:
    """Fill a folder with what `dist` declares, and with nothing else that this environment has."""
    todo = list(required(dist, extras))
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        key = requirement.name, frozenset(requirement.extras)
        if key in seen:
            continue
        seen.add(key)
        # Our own extras that name each other are read off the wheel, not off this environment.
        found = dist if requirement.name == dist.name else distribution(requirement.name)
        todo += required(found, tuple(requirement.extras))
        if found is dist:
            continue
        for top in {path.parts[0] for path in found.files or ()} - {"..", "__pycache__"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))))


def fresh_environment(folder: Path, wheel: Path, extras: tuple[str, ...] = ()) -> Path:
    """Install the wheel and its declared dependencies; get the folder of the programs."""
    venv.create(folder, symlinks=True)
    programs = folder / "bin"
    install = (sys.executable, "-m", "pip", "--python", programs / "python", "install")
    run(*install, "--no-deps", "--no-index", "--disable-pip-version-check", wheel)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (info,) = site_packages.glob("stanchion-*.dist-info")
    dependencies = folder / "dependencies"
    dependencies.mkdir()
    link_dependencies(dependencies, Distribution.at(info), extras)
    (site_packages / "dependencies.pth").write_text(f"{dependencies}\n")
    return programs


def test_the_wheel_decides_with_its_declared_dependencies_alone(
    built: Built, tmp_path: Path
) -> None:
    programs = fresh_environment(tmp_path / "core", built.wheel)

    assert run(programs / "python", "-W", "error", "-c", PROGRAM) == "[True, False]\n"


def test_the_command_line_needs_its_extra_and_names_it(built: Built, tmp_path: Path) -> None:
    without = fresh_environment(tmp_path / "core", built.wheel)
    assert "stanchion[cli]" in run(without / "stanchion", "--help", ok=False)

    complete = fresh_environment(tmp_path / "cli", built.wheel, extras=("cli",))
    assert "demo" in run(complete / "stanchion", "--help")
