"""The Lua sources, composed from files and includes into the texts that Redis runs."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_INCLUDE = re.compile(r"^-- @include (\S+)$", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)
_CLOCK = "include/clock"
_KINDS = "include/kinds"
# Answers by itself where nothing but token buckets is asked, and has no other use.
_EXPRESS, _BUCKETS = "express", frozenset({"gcra"})


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
    EPOCH = "epoch"
    INSPECT = "inspect"
    APPEND = "append"
    HALT = "halt"
    HALTS = "halts"


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


def read_sources(directory: Path) -> Mapping[str, str]:
    """Get the text of every Lua file below a directory, by its path without the suffix."""
    return {
        file.relative_to(directory).with_suffix("").as_posix(): file.read_text(encoding="utf-8")
        for file in sorted(directory.rglob("*.lua"))
    }


def compose(
    name: str,
    sources: Mapping[str, str],
    *,
    clock: str = _CLOCK,
    kinds: frozenset[str] | None = None,
) -> str:
    """Get the text of `name`.lua with every include before it, each once.

    `clock` names the include that stands in for `include/clock`; tests move time with another.
    `kinds` are the only kinds of limit that it is to know, None for all.

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
        for include in _INCLUDE.findall(sources[file]):
            if include == _EXPRESS and kinds != _BUCKETS:
                continue
            if file == _KINDS and kinds is not None and include not in kinds | {"makers"}:
                continue
            target = include if include.startswith("include/") else f"include/{include}"
            visit(clock if target == _CLOCK else target, (*path, file))
        done.add(file)
        parts.append(_COMMENT.sub("", sources[file]).strip())

    visit(name, ())
    return "\n".join(line for part in parts for line in part.splitlines() if line.strip()) + "\n"


class Scripts:
    """Every script of the engine, composed and named by its SHA-1."""

    def __init__(self, sources: Mapping[str, str], *, clock: str = _CLOCK) -> None:
        self._sources = sources
        self._clock = clock
        self._made: dict[tuple[ScriptName, frozenset[str] | None], Script] = {}

    def get(self, name: ScriptName, kinds: frozenset[str] | None = None) -> Script:
        """Get a script; with `kinds`, one that knows these kinds of limit and no other.

        What a script defines and does not use costs the server time in every call, so a call names
        the kinds that it needs.
        """
        script = self._made.get((name, kinds))
        if script is None:
            text = compose(name, self._sources, clock=self._clock, kinds=kinds)
            digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            script = self._made[name, kinds] = Script(name, text, digest)
        return script


def load_scripts(*, clock: str = _CLOCK) -> Scripts:
    """Get the engine's scripts from where they are installed."""
    return Scripts(read_sources(lua_directory()), clock=clock)
