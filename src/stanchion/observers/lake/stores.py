"""Where a lake is: a directory, or a bucket that obstore knows how to reach."""

from __future__ import annotations

import asyncio
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from stanchion.errors import ConfigError
from stanchion.observers.lake.rows import INSTALL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from datetime import datetime

_ACCEPTED: Final = (
    "expected a directory, a URL such as s3://bucket/prefix, az://container/prefix, "
    "gs://bucket/prefix or file:///directory, or a store of obstore's"
)
_URL: Final = re.compile(r"[a-z][a-z0-9+.\-]*://")
_CLOUDS: Final = ("AWS_", "AZURE_", "GOOGLE_")
_TOLD: Final = 200  # characters
_AT_ONCE: Final = 8
_SECRET: Final = re.compile(r"://[^/]*:[^/]*@|\?")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored:
    """One object: its path in the lake, its size in bytes, and when it was written."""

    path: str
    size: int
    written: datetime


class Store:
    """The few things that a lake asks of an object store; each has `timeout` seconds.

    The calls are obstore's blocking ones, on a few threads: its awaitable ones end in threads that
    ask for the interpreter when they are done, and a process that ends at that moment is aborted.
    """

    def __init__(
        self, lake: str | os.PathLike[str] | Any, options: Mapping[str, Any], timeout: float
    ) -> None:
        """Find the store; nothing is asked of it yet, but a missing directory is made.

        Raises:
            ConfigError: there is no such kind of store, an option is unknown or malformed, or
                obstore is not installed.
        """
        self._timeout = timeout
        self.name, self._store = _opened(lake, options, timeout)
        self._directory = _local(self._store)
        self._threads: ThreadPoolExecutor | None = None

    async def put(self, path: str, body: bytes, *, new: bool = False) -> None:
        """Store an object whole: nobody ever sees a part of it. On a disk it is there to stay.

        Raises:
            FileExistsError: it was to be `new`, and is not.
        """
        library = _obstore()

        def put() -> None:
            """Do it, on a thread."""
            library.put(self._store, path, body, mode="create" if new else "overwrite")
            if self._directory is not None:
                _sync(self._directory, path)

        try:
            await self._ask(put)
        except library.exceptions.AlreadyExistsError:
            raise FileExistsError(path) from None

    async def get(self, path: str) -> bytes:
        """Get an object.

        Raises:
            FileNotFoundError: there is none.
        """
        return await self._ask(lambda: bytes(_obstore().get(self._store, path).bytes()))

    async def has(self, path: str) -> bool:
        """Get whether there is an object."""
        try:
            await self._ask(lambda: _obstore().head(self._store, path))
        except FileNotFoundError:
            return False
        return True

    async def delete(self, paths: Sequence[str]) -> None:
        """Remove objects; one that is not there is no mistake."""
        for path in paths:
            with suppress(FileNotFoundError):
                await self._ask(partial(_obstore().delete, self._store, [path]))

    async def list(self, prefix: str) -> AsyncIterator[Stored]:
        """Get every object below a prefix, which ends where a name of a directory ends."""
        stream = iter(_obstore().list(self._store, prefix=prefix or None))
        while (found := await self._ask(lambda: next(stream, None))) is not None:
            for one in found:
                yield Stored(one["path"], one["size"], one["last_modified"])

    def close(self) -> None:
        """Let the threads end; a call that is under way ends by its own deadline."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, call: Callable[[], T]) -> T:
        if self._threads is None:
            # Not the loop's own: who looks up a name there should not wait for a bucket.
            self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="stanchion-lake")
        async with asyncio.timeout(self._timeout):
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def cause(error: BaseException) -> str:
    """Get what went wrong in a store, in a few words; obstore leaves out what is secret."""
    words = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {words[:_TOLD]}" if words else type(error).__name__


def _opened(lake: Any, options: Mapping[str, Any], timeout: float) -> tuple[str, Any]:
    library = _obstore()
    if isinstance(lake, _kinds()):
        if options:
            raise ConfigError("options: a store that is made already takes none")
        return type(lake).__name__, lake
    if isinstance(lake, os.PathLike):
        lake = os.fspath(cast("os.PathLike[str]", lake))
    if not isinstance(lake, str) or not lake or _SECRET.search(lake):
        raise ConfigError(f"lake: {_ACCEPTED}; what proves who we are belongs in the options")
    if not _URL.match(lake):
        lake = Path(lake).absolute().as_uri()
    local = lake.startswith("file:")
    if local and options:
        raise ConfigError("options: a directory takes none")
    settings: dict[str, Any] = {"mkdir": True} if local else _settings(options, timeout)
    try:
        return lake, library.store.from_url(lake, **settings)
    except (OSError, ValueError, TypeError, library.exceptions.BaseError) as error:
        # Not all of what obstore says: it may show what it was given.
        said = f"{_ACCEPTED} ({cause(error)})"
        raise ConfigError.of("lake", lake, said) from None


def _settings(options: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    given = dict(options)
    environment = {name: value for name, value in os.environ.items() if name.startswith(_CLOUDS)}
    plain = any(
        "endpoint" in name.lower() and isinstance(value, str) and value.startswith("http://")
        for name, value in {**environment, **given}.items()
    )
    return {
        "config": given,
        "client_options": {
            "timeout": timedelta(seconds=timeout),
            "connect_timeout": timedelta(seconds=timeout),
            # Who writes the address of an endpoint as http:// has asked for it.
            **({"allow_http": True} if plain else {}),
        },
        "retry_config": {"max_retries": 2, "retry_timeout": timedelta(seconds=timeout)},
    }


def _kinds() -> tuple[type[Any], ...]:
    store = _obstore().store
    return (
        *(store.AzureStore, store.GCSStore, store.HTTPStore),
        *(store.LocalStore, store.MemoryStore, store.S3Store),
    )


def _local(store: Any) -> Path | None:
    prefix = store.prefix if isinstance(store, _obstore().store.LocalStore) else None
    return None if prefix is None else Path(prefix)


def _sync(directory: Path, path: str) -> None:
    """Have the disk keep a file and the directories that lead to it."""
    place = directory / path
    while True:
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if place == directory:
            return
        place = place.parent


def _obstore() -> Any:
    try:
        import obstore
        import obstore.exceptions  # pyright: ignore[reportUnusedImport] - it is an attribute then
        import obstore.store  # pyright: ignore[reportUnusedImport] - as above
    except ImportError:
        raise ConfigError(INSTALL) from None
    return obstore
