"""A cluster client that goes where it is sent, and never repeats what may have run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from redis.asyncio.cluster import ClusterNode, PipelineCommand, RedisCluster
from redis.cluster import PRIMARY
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MaxConnectionsError,
    MovedError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import TimeoutError as ClientTimeout

if TYPE_CHECKING:
    from stanchion.store.awaited import Awaited

_OF_CONNECTIONS = ("ssl_password", "ssl_ca_path")
_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.05
# Ways that are taken without a pause: one to each side of a slot that is being moved.
_AT_ONCE = 2


class ClusterClient(RedisCluster):
    """The client's own, with redirections and slots under way handled as scripts need it.

    A call goes on to another node, or to the same one again, only after an answer that says that it
    did not run: MOVED, ASK and TRYAGAIN. It is offered for `patience` seconds, and then what was
    last said is raised. The client's own has four faults that show under load: it sends ASKING and
    the call on two connections, knows no way to a node that has just joined, offers a script whose
    keys are being moved for less than half a second, and closes every connection, those with
    answers under way included, with each fifth MOVED.
    """

    patience = 1.0

    def __init__(self, *, startup_nodes: list[ClusterNode], **options: Any) -> None:
        # It takes these for its connections only.
        late = {name: options.pop(name) for name in _OF_CONNECTIONS if name in options}
        cast("Any", super()).__init__(startup_nodes=startup_nodes, **options)
        self.connection_kwargs.update(late)
        for node in self.startup_nodes:
            node.connection_kwargs.update(late)
        cast("Any", self).commands_parser = _FirstIsKey()

    def relearn(self) -> None:
        """Ask for the layout before the next call, which then goes over a fresh connection.

        Answers that are under way come all the same.
        """
        self._initialize = True
        self._renew(*self.get_nodes())

    async def _execute_command(self, target_node: ClusterNode, *args: Any, **kwargs: Any) -> Any:
        loop = asyncio.get_running_loop()
        ends = loop.time() + self.patience
        node, ask, ways, pause = target_node, False, 0, _FIRST_PAUSE
        while True:
            try:
                call = self._asking if ask else self._plainly
                return await call(node, args, kwargs)
            except MovedError as moved:
                refusal: ResponseError = moved
                node, ask = await self._moved(moved, node), False
            except AskError as asked:
                refusal = asked
                node, ask = self._known(asked, node), True
            except TryAgainError as busy:
                refusal, ways = busy, _AT_ONCE
                # Who owns the slot knows; this may have been the one that imports it.
                node, ask = await self._owner(args, node), False
            except ClusterDownError:
                self._initialize = True
                raise
            except MaxConnectionsError:
                raise
            except (ConnectionLost, ClientTimeout, OSError):
                self._lost(node)
                raise
            ways += 1
            if loop.time() >= ends:
                raise refusal
            if ways > _AT_ONCE:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    @staticmethod
    async def _plainly(node: ClusterNode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "awaited" in kwargs:
            return await _acknowledged(node, kwargs["awaited"], args)
        return await node.execute_command(*args, **kwargs)

    @staticmethod
    async def _asking(node: ClusterNode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call on the node that imports its slot; it is let in for one call only."""
        if "awaited" in kwargs:
            return await _acknowledged(node, kwargs["awaited"], ("ASKING",), args)
        let_in, call = PipelineCommand(0, "ASKING"), PipelineCommand(1, *args, **kwargs)
        await node.execute_pipeline([let_in, call])
        for command in (let_in, call):
            if isinstance(command.result, Exception):
                raise command.result
        return call.result

    async def _moved(self, moved: MovedError, teller: ClusterNode) -> ClusterNode:
        node = self._known(moved, teller)
        await self.nodes_manager.move_slot(moved)
        return node

    def _known(self, told: AskError, teller: ClusterNode) -> ClusterNode:
        """Get the node that was named; it may have joined since the layout was read."""
        # No host means the same as that of the node which says so.
        host: str = cast("Any", told).host or teller.host
        told.host = host
        node = self.get_node(host, told.port)
        if node is None:
            node = ClusterNode(host, told.port, PRIMARY, **self.connection_kwargs)
            self.nodes_manager.set_nodes(self.nodes_manager.nodes_cache, {node.name: node})
        return node

    async def _owner(self, args: tuple[Any, ...], otherwise: ClusterNode) -> ClusterNode:
        slot = await self._determine_slot(*args)
        nodes = self.nodes_manager.slots_cache.get(slot)
        return nodes[0] if nodes else otherwise

    def _lost(self, node: ClusterNode) -> None:
        """Have the layout asked for before the next call, of this node last."""
        self._renew(node)
        self.nodes_manager.move_node_to_end_of_cached_nodes(node.name)
        self._initialize = True

    def _renew(self, *nodes: ClusterNode) -> None:
        """Have every connection to these nodes made anew when it is next taken.

        To close those that are free would cut off whoever takes one meanwhile.
        """
        known = self.nodes_manager.nodes_cache
        self.nodes_manager.set_nodes(known, {one.name: one for one in nodes if one.name in known})


async def _acknowledged(node: ClusterNode, awaited: Awaited, *commands: tuple[Any, ...]) -> object:
    """Run commands on a node, with the wait for its replicas behind them."""
    connection = node.acquire_connection()
    try:
        await node.disconnect_if_needed(connection)
        return await awaited.over(connection, *commands)
    finally:
        node.release(connection)


class _FirstIsKey:
    """Knows where the keys of our few commands are, without asking a node that may be away.

    The client's own asks whichever primary comes first, and while that is down finds none.
    """

    async def initialize(self, node: object = None) -> None:
        """Do nothing: there is nothing to learn."""

    async def get_keys(self, *command: object) -> tuple[str, ...]:
        """Get the key of a command other than a script's; those the client finds by itself."""
        return (str(command[1]),)
