"""The command line: `stanchion demo`, `inspect`, `tail` and others; needs the extra `cli`."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]

_NEEDED = ("rich", "typer")


def main() -> None:
    """Run the command line on `sys.argv`, and exit with its status."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"stanchion: the command line needs {' and '.join(missing)}: "
            'pip install "stanchion[cli]"\n'
        )
        sys.exit(1)
    from stanchion.cli.app import run

    sys.exit(run())
