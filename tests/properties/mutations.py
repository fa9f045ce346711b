"""Faults for the machine to find: the scripts with one place changed, named for what users lose.

Each is one text of one source file, which must be in that file, and in every script that is made
with it, exactly once: a fault that is no longer put in would be found by nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from stanchion.store.scripts import Script, ScriptName, load_scripts, lua_directory


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
def _intact() -> Mapping[ScriptName, Script]:
    return load_scripts(clock="include/manual_clock")


def mutated(mutation: Mutation) -> dict[ScriptName, Script]:
    """Get every script, with the fault in those that it concerns."""
    source = (lua_directory() / f"{mutation.file}.lua").read_text(encoding="utf-8")
    assert source.count(mutation.text) == 1, f"{source.count(mutation.text)} times in the source"
    scripts = dict(_intact())
    for name, script in _intact().items():
        count = script.text.count(mutation.text)
        assert count <= 1, f"{count} times in {name}"
        if count:
            text = script.text.replace(mutation.text, mutation.instead)
            sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            scripts[name] = Script(name, text, sha)
    assert scripts != _intact(), "in no script"
    return scripts
