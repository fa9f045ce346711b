"""The Lua sources, composed from files and includes into the texts that Redis runs."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_INCLUDE = re.compile(r"^-- @include (\S+)$", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)


class ScriptName(StrEnum):
    """The atomic acts of the engine, one Lua file each."""

    ADMIT = "admit"
    PEEK = "peek"
    SETTLE = "settle"
    RENEW = "renew"
    FORCE = "force"
    RESET = "reset"
    LEAVE = "leave"
    OVERRIDE = "override"
    SYNC = "sync"
    INSPECT = "inspect"


@dataclass(frozen=True, slots=True)
class Script:
    """One script as the server sees it: its text and the SHA-1 that EVALSHA names it by."""

    name: ScriptName
    text: str = field(repr=False)
    sha: str


def lua_directory() -> Path:
    """Get the directory of the Lua sources: inside an installed package, else in the checkout.

    Raises:
        FileNotFoundError: neither place has them, so the installation is broken.
    """
    package = Path(__file__).parents[1] / "lua"
    checkout = Path(__file__).parents[3] / "lua"
    for place in (package, checkout):
        if (place / "admit.lua").is_file():
            return place
    raise FileNotFoundError(f"the Lua sources are missing: looked in {package} and {checkout}")


def compose(name: str, *, directory: Path, clock: str = "include/clock") -> str:
    """Get the text of `name`.lua with every include before it, each once.

    `clock` names the include that stands in for `include/clock`; tests move time with another.

    Raises:
        ValueError: includes form a cycle.
    """
    parts: list[str] = []
    done: set[str] = set()

    def visit(file: str, path: tuple[str, ...]) -> None:
        if file in path:
            raise ValueError(f"Lua includes form a cycle: {' -> '.join((*path, file))}")
        if file in done:
            return
        source = (directory / f"{file}.lua").read_text(encoding="utf-8")
        for include in _INCLUDE.findall(source):
            target = include if include.startswith("include/") else f"include/{include}"
            visit(clock if target == "include/clock" else target, (*path, file))
        done.add(file)
        parts.append(_COMMENT.sub("", source).strip())

    visit(name, ())
    return "\n".join(line for part in parts for line in part.splitlines() if line.strip()) + "\n"


def load_scripts(*, clock: str = "include/clock") -> Mapping[ScriptName, Script]:
    """Get every script of the engine, composed and named by its SHA-1."""
    directory = lua_directory()
    scripts: dict[ScriptName, Script] = {}
    for name in ScriptName:
        text = compose(name, directory=directory, clock=clock)
        digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        scripts[name] = Script(name, text, digest)
    return MappingProxyType(scripts)
