"""Lakes on a disk, in S3 and in Azure, and readers of them that are not ours: Arrow and DuckDB."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import duckdb
import pyarrow.dataset as ds
from pyarrow import fs

from stanchion.events.cloudevents import write_time
from tests.observers.sinks.daemons import Daemon
from tests.servers import missing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_AZURITE = "3.37.0"
#: Beside the Python environment that the tests run in, and gone with it.
_HOME = Path(__file__).parents[3] / ".venv" / "azurite"
_ACCOUNT = "stanchiontest"
_KEY = "bm90IGEgc2VjcmV0IGF0IGFsbCwgb25seSBmb3IgdGVzdHM="


@dataclass(frozen=True)
class Lake:
    """A lake as the sink is told of it, and as others read it."""

    place: str
    root: str
    files: fs.FileSystem
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def paths(self) -> list[str]:
        """Get every object, by its path in the lake."""
        selector = fs.FileSelector(self.root, recursive=True, allow_not_found=True)
        found = [one for one in self.files.get_file_info(selector) if one.is_file]
        return sorted(one.path.removeprefix(f"{self.root}/") for one in found)

    def parts(self) -> list[str]:
        return [path for path in self.paths() if path.endswith(".parquet")]

    def dataset(self) -> ds.Dataset:
        """Open it with Arrow, the partitions read from the names of the directories."""
        return ds.dataset(self.root, filesystem=self.files, format="parquet", partitioning="hive")

    def rows(self) -> list[dict[str, Any]]:
        """Get every row, by time and id."""
        if not self.parts():
            return []
        rows = self.dataset().to_table().to_pylist()
        return sorted(rows, key=lambda row: (row["time"], row["id"]))

    def ids(self) -> list[str]:
        return sorted(row["id"] for row in self.rows())

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Ask DuckDB, which reads the lake through Arrow."""
        with duckdb.connect() as connection:
            connection.register("lake", self.dataset())
            return connection.execute(query).fetchall()


def document(row: Mapping[str, Any]) -> dict[str, Any]:
    """Make the CloudEvent of a row again."""
    attributes = ("id", "source", "specversion", "type", "subject", "datacontenttype", "dataschema")
    made = {name: row[name] for name in attributes if row[name] is not None}
    made["time"] = write_time(row["time"].astimezone(UTC))
    made |= json.loads(row["extensions"] or "{}")
    if row["data"] is not None:
        made["data"] = json.loads(row["data"])
    if row["data_base64"] is not None:
        made["data_base64"] = row["data_base64"]
    return made


class Bucket(Daemon, ABC):
    """An object store in a process of its own; each lake in it has a bucket of its own."""

    _number = 0

    def lake(self) -> Lake:
        type(self)._number += 1
        bucket = f"lake-{type(self)._number}"
        self.files().create_dir(bucket)
        return Lake(
            f"{self.scheme}://{bucket}/events", f"{bucket}/events", self.files(), self.options()
        )

    scheme = ""

    @abstractmethod
    def files(self) -> fs.FileSystem: ...

    @abstractmethod
    def options(self) -> Mapping[str, Any]: ...


class Moto(Bucket):
    """S3 as far as moto has it."""

    scheme = "s3"

    def command(self) -> Sequence[str | Path]:
        return [sys.executable, "-m", "moto.server", "-H", self.host, "-p", str(self.port)]

    def files(self) -> fs.FileSystem:
        return fs.S3FileSystem(
            access_key="reader",
            secret_key="reader",
            endpoint_override=f"{self.host}:{self.port}",
            scheme="http",
            region="eu-central-1",
            allow_bucket_creation=True,
        )

    def options(self) -> Mapping[str, Any]:
        return {
            "endpoint": f"http://{self.host}:{self.port}",
            "region": "eu-central-1",
            "access_key_id": "writer",
            "secret_access_key": "do not show me",
        }


class Azurite(Bucket):
    """Azure's own emulator of its blob storage, which npm brings."""

    scheme = "az"

    def command(self) -> Sequence[str | Path]:
        program = azurite()
        return [
            *("node", program, "--blobHost", self.host, "--blobPort", str(self.port)),
            *("--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"),
        ]

    def start(self) -> None:
        os.environ["AZURITE_ACCOUNTS"] = f"{_ACCOUNT}:{_KEY}"
        try:
            super().start()
        finally:
            del os.environ["AZURITE_ACCOUNTS"]

    def files(self) -> fs.FileSystem:
        return fs.AzureFileSystem(
            account_name=_ACCOUNT,
            account_key=_KEY,
            blob_storage_authority=f"{self.host}:{self.port}",
            blob_storage_scheme="http",
            dfs_storage_authority=f"{self.host}:{self.port}",
            dfs_storage_scheme="http",
        )

    def options(self) -> Mapping[str, Any]:
        endpoint = f"http://{self.host}:{self.port}/{_ACCOUNT}"
        return {"account_name": _ACCOUNT, "account_key": _KEY, "endpoint": endpoint}


def azurite() -> Path:
    """Get the program, installed if it was not."""
    program = _HOME / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        _unavailable("no npm and node on PATH")
    if program.exists():
        return program
    _HOME.mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--prefix", _HOME, "--no-audit", "--no-fund"]
    done = subprocess.run(
        [*command, f"azurite@{_AZURITE}"], capture_output=True, text=True, check=False, timeout=150
    )
    if not program.exists():
        _unavailable(done.stderr.strip() or "npm brought no azurite")
    return program


def _unavailable(why: str) -> NoReturn:
    missing(f"no azurite, which cannot be installed with pip: {why}")


def on_disk(directory: Path) -> Lake:
    place = directory / "a lake"
    return Lake(str(place), str(place), fs.LocalFileSystem())
