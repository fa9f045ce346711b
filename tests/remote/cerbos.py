"""A real Cerbos, which npm brings, with one policy."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tests.observers.sinks.daemons import Daemon
from tests.servers import missing

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = "0.51.0"
#: Beside the Python environment that the tests run in, and gone with it.
HOME = Path(__file__).parents[2] / ".venv" / "npm"
_PATIENCE = 50

_CONFIG = """\
server: {{httpListenAddr: "127.0.0.1:{port}", grpcListenAddr: "unix:{socket}"}}
telemetry: {{disabled: true}}
storage: {{driver: disk, disk: {{directory: policies}}}}
"""

_POLICY = """\
apiVersion: api.cerbos.dev/v1
resourcePolicy:
  resource: model
  version: default
  rules:
    - actions: ["remote:call"]
      effect: EFFECT_ALLOW
      roles: ["tenant"]
      condition:
        match: {expr: R.attr.tokens <= 1000}
      output:
        when: {conditionNotMet: '"too many tokens: " + string(R.attr.tokens)'}
"""


def _unavailable(why: str) -> NoReturn:
    missing(f"no Cerbos, which cannot be installed with pip: {why}")


def program() -> Path:
    """Get the server, installed if it was not."""
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"cerbos-{platform.system().lower()}-{machine}"
    found = HOME / "node_modules" / "@cerbos" / name / name
    if found.exists():
        return found
    npm = shutil.which("npm")
    if npm is None:
        _unavailable("no npm on PATH")
    HOME.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [npm, "install", "--prefix", HOME, "--no-audit", "--no-fund", f"cerbos@{VERSION}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE,
    )
    if not found.exists():
        _unavailable(done.stderr.strip() or f"npm brought no {name}")
    return found


class Cerbos(Daemon):
    """Calls of up to 1000 tokens are allowed to tenants."""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def command(self) -> Sequence[str | Path]:
        (self.directory / "policies").mkdir(exist_ok=True)
        (self.directory / "policies" / "model.yaml").write_text(_POLICY)
        config = self.directory / "config.yaml"
        socket = self.directory / "grpc.sock"
        config.write_text(_CONFIG.format(port=self.port, socket=socket))
        return [program(), "server", f"--config={config}"]
