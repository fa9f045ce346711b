"""One server, asked over the connections that a worker would have; one deadline for all of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from redis.asyncio.cluster import RedisCluster
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from stanchion.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio.cluster import ClusterNode

    from stanchion.store.clients import Connections

_LONGEST = 200


class Unasked(Exception):
    """The server answered, and would not say: the text is its reason."""


class NotPermitted(Unasked):
    """The user may not ask that."""


class Server:
    """The server that holds the namespace of `key`. All questions end `deadline` seconds from now.

    What it raises is `StoreUnavailable` where there was no answer, and `Unasked` where it was no.
    """

    def __init__(self, connections: Connections, key: str, *, deadline: float) -> None:
        self.connections = connections
        self._key = key
        self._deadline = deadline
        self._ends = asyncio.get_running_loop().time() + deadline
        self._node: ClusterNode | None = None
        self._info: Mapping[str, Any] | None = None
        self._settings: dict[tuple[str, ...], Mapping[str, str]] = {}

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self._ends - asyncio.get_running_loop().time())

    @property
    def node(self) -> ClusterNode | None:
        """The node of a cluster that holds the namespace; None where there is no cluster."""
        return self._node

    async def find(self) -> None:
        """Find the node that holds the namespace, where there are several."""
        client = self.connections.client
        if isinstance(client, RedisCluster):
            await self._answer(client.initialize())
            self._node = client.get_node_from_key(self._key)

    async def ask(self, *command: str) -> Any:
        """Run one command, once."""
        options: dict[str, Any] = {} if self._node is None else {"target_nodes": self._node}
        client = cast("Any", self.connections.client)
        return await self._answer(client.execute_command(*command, **options))

    async def try_asking(self, *command: str) -> Any:
        """Run one command; None where the server would not answer it."""
        try:
            return await self.ask(*command)
        except Unasked:
            return None

    async def info(self) -> Mapping[str, Any]:
        """Get what INFO says; asked once."""
        if self._info is None:
            self._info = cast("Mapping[str, Any]", await self.ask("INFO"))
        return self._info

    async def settings(self, *names: str) -> Mapping[str, str]:
        """Get settings by CONFIG GET, asked once; none of them where that is not answered."""
        if names not in self._settings:
            found = await self.try_asking("CONFIG", "GET", *names)
            self._settings[names] = pairs(found or {})
        return self._settings[names]

    async def _answer(self, asked: Any) -> Any:
        try:
            async with asyncio.timeout_at(self._ends):
                return await asked
        except AuthenticationError as error:
            raise StoreUnavailable(f"the server refused the login: {_text(error)}") from error
        except MasterNotFoundError as error:
            # Its own text lists every client, with all of their options.
            raise StoreUnavailable("no sentinel that answers knows a primary of it") from error
        except NoPermissionError as error:
            raise NotPermitted(_text(error)) from error
        except ResponseError as error:
            raise Unasked(_text(error)) from error
        except TimeoutError as error:
            raise StoreUnavailable(f"no answer within {self._deadline:g} s") from error
        except (RedisError, RedisClusterException, OSError) as error:
            raise StoreUnavailable(_text(error)) from error


def _text(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:_LONGEST] or type(error).__name__


def pairs(reply: object) -> dict[str, str]:
    """Get a reply of names and values as a mapping of text, however the protocol gave it."""
    if isinstance(reply, dict):
        items = list(cast("dict[Any, Any]", reply).items())
    else:
        words = cast("list[Any]", reply)
        items = list(zip(words[::2], words[1::2], strict=True))
    return {text(name): text(value) for name, value in items}


def text(value: object) -> str:
    """Get a word of a reply as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
