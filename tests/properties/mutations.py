"""Faults for the machine to find: the scripts with one place changed, named for what users lose.

Each is one text of one source file, which must be in that file exactly once, and in some script: a
fault that is no longer put in would be found by nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from stanchion.store.scripts import ScriptName, Scripts, lua_directory, read_sources


@dataclass(frozen=True)
class Mutation:
    """One fault, and the deck of policies that meets it."""

    name: str
    deck: str
    file: str
    text: str
    instead: str
    #: Found only after more examples than an ordinary run has time for.
    rare: bool = False

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


@cache
def _sources() -> Mapping[str, str]:
    return read_sources(lua_directory())


def mutated(mutation: Mutation) -> Scripts:
    """Get every script, with the fault in those that it concerns."""
    source = _sources()[mutation.file]
    assert source.count(mutation.text) == 1, f"{source.count(mutation.text)} times in the source"
    changed = {mutation.file: source.replace(mutation.text, mutation.instead)}
    scripts = Scripts({**_sources(), **changed}, clock="include/manual_clock")
    # A fault in a comment, which no script has, would be found by nobody.
    assert any(mutation.instead in scripts.get(name).text for name in ScriptName), "in no script"
    return scripts
