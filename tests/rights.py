"""The ACL lines of docs/operations.md: what the docs say is what the tests give."""

from __future__ import annotations

import re
from pathlib import Path

_PAGE = Path(__file__).parents[1] / "docs" / "operations.md"
_LINE = re.compile(r"^ACL SETUSER (\w+) (.+)$", re.MULTILINE)
PASSWORD = "secret"


def documented(who: str, namespace: str = "default") -> list[list[str]]:
    """Get the rules of every line for a user, in the order of the page."""
    lines = [rules for name, rules in _LINE.findall(_PAGE.read_text("utf-8")) if name == who]
    return [
        rules.replace("{default}", f"{{{namespace}}}").replace("PASSWORD", PASSWORD).split()
        for rules in lines
    ]


def commands(rules: list[str]) -> set[str]:
    """Get the commands that some rules allow."""
    return {rule.removeprefix("+") for rule in rules if rule.startswith("+")}


def url_of(who: str, url: str) -> str:
    """Get a server's URL with this user's login in it."""
    return url.replace("://", f"://{who}:{PASSWORD}@")
