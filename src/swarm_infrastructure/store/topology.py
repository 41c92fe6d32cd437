"""Where a key is: on the one server, on the master that the sentinels name, or on the primary of its slot.

Owns finding out, and finding out again when an answer casts doubt on what is known. Leaves to `Store` what is asked,
and how often.

Why not redis-py's ``RedisCluster``: it asks a server for the keys of a function before it calls it (8.1.0: 199 ``COMMAND
GETKEYS`` for 100 ``FCALL``), so every call of ours would be three round trips; and one client per server is what functions
with a WAIT behind them, the connection for leases and the subscription need anyhow.
"""

from __future__ import annotations

import asyncio
import contextlib
import random as chance
from collections.abc import Sequence
from typing import Any, Protocol

import structlog
from redis import exceptions as refused
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from ..redis_url import ServerGroup, server_group
from .nodes import Node

__all__ = ["Topology", "topology_of"]

log = structlog.get_logger(__name__)
LOOK_S = 1.0  # for one sentinel's or node's answer to the question where things are; the next one is asked then
Address = tuple[str, int]


class Topology(Protocol):
    """Where a key is."""

    only: Node | None  #: the server, if there is one for all keys and never another

    async def node(self, key: str | bytes | None) -> Node:
        """The server that takes writes of *key*; any that takes writes if it is None."""
        ...

    async def nodes(self) -> Sequence[Node]:
        """Every server that takes writes."""
        ...

    def doubt(self, node: Node | None) -> None:
        """*node* has failed, or can't be trusted to be the right one: look again before the next call."""
        ...

    def redirect(self, node: Node, error: refused.AskError) -> Node | None:
        """The server to which *node* points; None if there are no others."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


def topology_of(url: str, *, timeout_s: float, random: chance.Random) -> Topology:
    """The topology that a URL asks for.

    Raises:
        ValueError: it is no URL of Redis.
    """
    group = server_group(url)
    if group is None:
        return _OneServer(Node(url, timeout_s=timeout_s))
    if group.kind == "sentinel":
        return _Sentinels(group, timeout_s=timeout_s, random=random)
    return _Cluster(group, timeout_s=timeout_s, random=random)


class _OneServer:
    def __init__(self, node: Node) -> None:
        self.only: Node | None = node
        self._node = node

    async def node(self, key: str | bytes | None) -> Node:
        return self._node

    async def nodes(self) -> Sequence[Node]:
        return [self._node]

    def doubt(self, node: Node | None) -> None:
        pass

    def redirect(self, node: Node, error: refused.AskError) -> Node | None:
        return None

    async def close(self) -> None:
        await self._node.close()


class _Looked:
    """What sentinels and clusters have in common: servers that come and go, and one look for all who wait for it."""

    only: Node | None = None

    def __init__(self, group: ServerGroup, *, timeout_s: float, random: chance.Random) -> None:
        self._group, self._timeout_s, self._random = group, timeout_s, random
        self._servers: dict[Address, Node] = {}
        self._gone: list[Node] = []  # the last to be left, until their connections can be closed
        self._doubtful = True
        self._doubted: set[Address] = set()  # since the last look: to be asked last
        self._look: asyncio.Task[None] | None = None

    def doubt(self, node: Node | None) -> None:
        self._doubtful = True
        self._doubted |= {address for address, each in self._servers.items() if each is node}

    def redirect(self, node: Node, error: refused.AskError) -> Node | None:
        return None

    async def close(self) -> None:
        if self._look is not None:
            self._look.cancel()
            await asyncio.gather(self._look, return_exceptions=True)
        for server in [*self._servers.values(), *self._gone]:
            await server.close()
        self._servers.clear()
        self._gone.clear()
        self._doubtful = True

    async def _be_sure(self) -> None:
        if not self._doubtful:
            return
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._find_out(), name="look where Redis is")
            self._look.add_done_callback(_retrieve)
        async with asyncio.timeout(self._timeout_s):
            await asyncio.shield(self._look)

    async def _find_out(self) -> None:
        self._doubtful = False  # what casts doubt from here on asks for another look
        try:
            await self._find()
        except BaseException:
            self._doubtful = True
            raise
        self._doubted.clear()

    async def _find(self) -> None:
        raise NotImplementedError

    def _server(self, address: Address) -> Node:
        if address not in self._servers:
            self._servers[address] = Node(self._group.url_of(*address), timeout_s=self._timeout_s)
        return self._servers[address]

    async def _keep_only(self, addresses: set[Address]) -> None:
        gone = [self._servers.pop(address) for address in set(self._servers) - addresses]
        for server in gone:
            server.sever()  # its calls fail, and are repeated where the work is now
        if gone:
            self._gone, earlier = gone, self._gone
            for server in earlier:  # nobody is left there; of the others each still hands its connection back
                await server.close()


class _Sentinels(_Looked):
    def __init__(self, group: ServerGroup, *, timeout_s: float, random: chance.Random) -> None:
        super().__init__(group, timeout_s=timeout_s, random=random)
        look_s = min(LOOK_S, timeout_s)
        self._sentinels = Sentinel(  # type: ignore[no-untyped-call]
            group.hosts,
            sentinel_kwargs={
                "username": group.sentinel_username,
                "password": group.sentinel_password,
                "socket_timeout": look_s,
                "socket_connect_timeout": look_s,
                "retry": Retry(NoBackoff(), 0),
                "ssl": group.scheme == "rediss",
            },
        )
        self._master: Address | None = None

    async def node(self, key: str | bytes | None) -> Node:
        await self._be_sure()
        assert self._master is not None  # or the look had failed
        return self._servers[self._master]

    async def nodes(self) -> Sequence[Node]:
        return [await self.node(None)]

    async def close(self) -> None:
        await super().close()
        with contextlib.suppress(refused.RedisError, OSError):
            await self._sentinels.aclose()

    async def _find(self) -> None:
        host, port = await self._sentinels.discover_master(self._group.master)
        found = (str(host), int(port))
        if self._master not in (None, found):
            log.warning("another Redis is the master now", master=f"{host}:{port}", name=self._group.master)
        self._server(found)
        self._master = found
        await self._keep_only({found})


class _Cluster(_Looked):
    def __init__(self, group: ServerGroup, *, timeout_s: float, random: chance.Random) -> None:
        super().__init__(group, timeout_s=timeout_s, random=random)
        self._slots: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS

    async def node(self, key: str | bytes | None) -> Node:
        await self._be_sure()
        if key is None:
            return next(iter(self._servers.values()))
        slot = key_slot(key.encode() if isinstance(key, str) else key)
        node = self._slots[slot]
        if node is None:
            self._doubtful = True
            raise refused.ClusterDownError(f"CLUSTERDOWN no server of the cluster has slot {slot}")
        return node

    async def nodes(self) -> Sequence[Node]:
        await self._be_sure()
        return list(self._servers.values())

    def redirect(self, node: Node, error: refused.AskError) -> Node | None:
        host = error.host
        if not host:  # it means: where I am
            host = next((address[0] for address, each in self._servers.items() if each is node), "")
        pointed = self._server((host, error.port))
        if isinstance(error, refused.MovedError):
            self._slots[error.slot_id] = pointed
        return pointed

    async def _find(self) -> None:
        known = list({*self._servers, *self._group.hosts})
        self._random.shuffle(known)
        known.sort(key=lambda address: address in self._doubted)
        why: Exception = refused.ClusterError("no node of the cluster was named")
        for address in known:
            try:
                async with asyncio.timeout(min(LOOK_S, self._timeout_s)):
                    ranges = await self._ask(address)
            except (refused.ConnectionError, refused.TimeoutError, refused.BusyLoadingError, OSError) as error:
                why = error
                continue
            if not ranges:
                why = refused.ClusterDownError(f"CLUSTERDOWN {address[0]}:{address[1]} knows of no slots")
                continue
            slots: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
            for first, last, primary in ranges:
                slots[first : last + 1] = [self._server(primary)] * (last + 1 - first)
            self._slots = slots
            await self._keep_only({primary for _, _, primary in ranges})
            return
        raise why

    async def _ask(self, address: Address) -> list[tuple[int, int, Address]]:
        # a client of its own: where a seed is a replica, or gone from the cluster, no call may go there
        server = Redis.from_url(
            self._group.url_of(*address), retry=Retry(NoBackoff(), 0), retry_on_error=[],
            socket_timeout=None, single_connection_client=True,
        )  # fmt: skip
        try:
            rows: Any = await server.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
        finally:
            await server.aclose()
        # a server that does not know its own name leaves it empty: it is where we asked
        return [
            (int(first), int(last), (primary[0].decode() or address[0], int(primary[1])))
            for first, last, primary, *_ in rows
        ]


def _retrieve(look: asyncio.Task[None]) -> None:
    """Look at the outcome: a look that failed when nobody waited any more is nothing to warn of."""
    if not look.cancelled():
        look.exception()
