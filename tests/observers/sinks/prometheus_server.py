"""A real Prometheus that scrapes what a test serves."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.servers import free_port, missing
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Reaper

ALERTS = Path(__file__).parents[3] / "deploy" / "prometheus" / "alerts.yml"
START_DEADLINE = 15.0
# Its first scrape comes five seconds after its start, whatever the interval.
SCRAPE_DEADLINE = 20.0


def debian(program: str) -> str:
    """Get a program of Debian's package prometheus; without it, skip, and fail in CI."""
    found = shutil.which(program)
    if found is None:
        missing(f"{program} is not installed (Debian: apt-get install prometheus)")
    return found


class Prometheus:
    """Asks a server over its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str | float) -> Any:
        with urlopen(f"{self.url}{path}?{urlencode(parameters)}", timeout=5) as answer:  # noqa: S310
            return json.load(answer)

    def query(self, expression: str) -> list[dict[str, Any]]:
        return self.get("/api/v1/query", query=expression)["data"]["result"]

    def value(self, expression: str) -> float:
        (result,) = self.query(expression)
        return float(result["value"][1])

    def ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/-/ready", timeout=5) as answer:  # noqa: S310
                return answer.status == 200
        except (URLError, ConnectionError):
            return False


@contextmanager
def prometheus(target: str, reaper: Reaper) -> Iterator[Prometheus]:
    """Run a server that scrapes `target` (host:port) five times a second, with our alerts."""
    program = debian("prometheus")
    directory = Path(tempfile.mkdtemp(prefix="stanchion-test-"))
    config = {
        "global": {"scrape_interval": "200ms", "evaluation_interval": "200ms"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": "stanchion", "static_configs": [{"targets": [target]}]}],
    }
    (directory / "prometheus.yml").write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        *(program, "--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=warn"),
        *(f"--web.listen-address={address}", "--enable-feature=exemplar-storage"),
    ]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
    reaper.watch(process.pid, directory)
    server = Prometheus(f"http://{address}")
    try:
        eventually_sync(
            lambda: server.ready() or process.poll() is not None, START_DEADLINE, what="ready"
        )
        assert process.poll() is None, (directory / "log").read_text()
        yield server
    finally:
        process.kill()
        process.wait(10)
        reaper.forget(process.pid)
        shutil.rmtree(directory)


def scraped(server: Prometheus, metric: str) -> list[dict[str, Any]]:
    """Wait until a server has a metric."""
    return eventually_sync(lambda: server.query(metric), SCRAPE_DEADLINE, interval=0.05)
