"""Several Redis servers of one's own for a test: a master with replicas and sentinels, or a cluster.

Owns how they are joined and parted. Each server among them is a `RedisServer`, which may be frozen, killed and started
again by itself. All listen on free ports of 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from swarm_infrastructure.errors import ConfigurationError, StoreUnavailableError

from .redis_server import RedisServer, server_binary

__all__ = ["RedisCluster", "SentinelGroup", "free_ports"]

SETTLE_S = 30.0  # until replicas follow, sentinels know each other, a cluster agrees: 1 to 4 s were measured
SLOTS = 16384
FIRST_PORT, LAST_PORT = 10_000, 32_000


class SentinelGroup:
    """A master, its replicas, and the sentinels that put a replica in its place when it is gone.

    Use it as ``with SentinelGroup() as group``; ``group.url`` is for a store. ``isolate`` is a network partition: replicas
    and sentinels lose the master, while whoever else is connected to it stays so.
    """

    MASTER = "main"

    def __init__(
        self,
        kind: str = "valkey",
        *,
        replicas: int = 2,
        sentinels: int = 3,
        down_after_ms: int = 2000,
        options: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare the servers; nothing runs yet.

        Args:
            kind: "valkey" or "redis".
            replicas: how many.
            sentinels: how many; more than half of them must agree that the master is gone.
            down_after_ms: how long it may be silent. A sentinel connects and pings once a second, so with 1000 a busy machine's
                takes a new master for dead, too.
            options: further lines of the servers' configuration.
        """
        self.kind, self._down_after_ms = kind, down_after_ms
        self._password = secrets.token_hex(8)
        ports = free_ports(1 + replicas + sentinels)
        # replicas and sentinels have users of their own: who locks these out has cut those links and no others
        common = {
            "masteruser": "replica",
            "masterauth": self._password,
            "repl-diskless-sync-delay": "0",
            "repl-ping-replica-period": "1",
            "repl-timeout": "5",
        } | dict(options or {})
        self.servers = [RedisServer(kind, persist=True, port=port, options=common) for port in ports[: 1 + replicas]]
        self._sentinels = [_Sentinel(kind, port) for port in ports[1 + replicas :]]

    @property
    def url(self) -> str:
        """For a store: ``redis+sentinel://...``."""
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self._sentinels)
        return f"redis+sentinel://:{self._password}@{hosts}/{self.MASTER}"

    def url_of(self, server: RedisServer) -> str:
        """For a store that knows of no sentinels: ``redis://...``."""
        return f"redis://:{self._password}@127.0.0.1:{server.port}"

    def __enter__(self) -> Self:
        from swarm_infrastructure.store.nodes import ask_once

        try:
            for server in self.servers:
                server.start()
                ask_once(server.url, "ACL", "SETUSER", "default", "resetpass", f">{self._password}")
                self._ask(
                    server, "ACL", "SETUSER", "replica", "on", f">{self._password}", "+psync", "+replconf", "+ping"
                )
                self._ask(server, "ACL", "SETUSER", "sentinel", "on", f">{self._password}", "allchannels", "+@all")
            master, *replicas = self.servers
            for replica in replicas:
                self._ask(replica, "REPLICAOF", "127.0.0.1", master.port or 0)
            _settle(lambda: self.replicas_of(master) == len(replicas), "the replicas")
            quorum = len(self._sentinels) // 2 + 1
            for sentinel in self._sentinels:
                sentinel.start(
                    f"sentinel monitor {self.MASTER} 127.0.0.1 {master.port} {quorum}\n"
                    f"sentinel auth-user {self.MASTER} sentinel\nsentinel auth-pass {self.MASTER} {self._password}\n"
                    f"sentinel down-after-milliseconds {self.MASTER} {self._down_after_ms}\n"
                    f"sentinel failover-timeout {self.MASTER} 4000\nsentinel parallel-syncs {self.MASTER} 2\n"
                )
            _settle(lambda: all(self._knows_all(each) for each in self._sentinels), "the sentinels")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process. Idempotent."""
        for sentinel in self._sentinels:
            sentinel.stop()
        for server in self.servers:
            server.stop()

    def master(self) -> RedisServer:
        """The server that the sentinels name now."""
        for sentinel in self._sentinels:
            with contextlib.suppress(StoreUnavailableError):
                _, port = sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.MASTER)
                return next(each for each in self.servers if each.port == int(port))
        raise StoreUnavailableError(self.url, "no sentinel answers")

    def replicas_of(self, server: RedisServer) -> int:
        """How many replicas follow *server* and have all that it has sent."""
        facts = self._ask(server, "INFO", "replication")
        lines = [facts.get(f"slave{number}", {}) for number in range(len(self.servers))]
        sent = facts["master_repl_offset"]
        return sum(line.get("state") == "online" and line["offset"] == sent for line in lines)

    def isolate(self, server: RedisServer, *, sentinels: bool = True) -> None:
        """Cut *server* off from replicas, and from sentinels too; its other clients notice nothing."""
        for user in ("replica", "sentinel") if sentinels else ("replica",):
            self._ask(server, "ACL", "SETUSER", user, "off")
            with contextlib.suppress(StoreUnavailableError):
                self._ask(server, "CLIENT", "KILL", "USER", user)

    def join(self, server: RedisServer) -> None:
        """End what `isolate` began."""
        for user in ("replica", "sentinel"):
            self._ask(server, "ACL", "SETUSER", user, "on")

    def wait_for_failover(self, old: RedisServer) -> RedisServer:
        """The new master, once the sentinels agree on one other than *old*."""
        _settle(lambda: self.master() is not old and self._role(self.master()) == "master", "another master")
        return self.master()

    def _role(self, server: RedisServer) -> str:
        return str(self._ask(server, "INFO", "replication")["role"])

    def _ask(self, server: RedisServer, *words: str | int) -> Any:
        from swarm_infrastructure.store.nodes import ask_once

        return ask_once(self.url_of(server), *words)

    def _knows_all(self, sentinel: _Sentinel) -> bool:
        facts = sentinel.ask("SENTINEL", "MASTER", self.MASTER)
        facts = facts if isinstance(facts, dict) else dict(zip(facts[::2], facts[1::2], strict=True))
        return (int(facts["num-slaves"]), int(facts["num-other-sentinels"])) == (
            len(self.servers) - 1,
            len(self._sentinels) - 1,
        )


class _Sentinel:
    def __init__(self, kind: str, port: int) -> None:
        self.kind, self.port = kind, port
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, monitor: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="swarm-test-"))
        config = self._folder / "sentinel.conf"  # it writes what it learns into this file
        config.write_text(f'port {self.port}\nbind 127.0.0.1\ndir "{self._folder}"\n{monitor}')
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [server_binary(self.kind), config, "--sentinel"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def answers() -> bool:
            with contextlib.suppress(StoreUnavailableError):
                return bool(self.ask("PING"))
            return False

        _settle(answers, "a sentinel")

    def ask(self, *words: str | int) -> Any:
        from swarm_infrastructure.store.nodes import ask_once

        return ask_once(f"redis://127.0.0.1:{self.port}", *words, timeout_s=1.0)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


class RedisCluster:
    """A cluster: primaries that share the slots, each with the same number of replicas.

    Use it as ``with RedisCluster() as cluster``; ``cluster.url`` is for a store.
    """

    def __init__(
        self,
        kind: str = "valkey",
        *,
        primaries: int = 3,
        replicas: int = 0,
        node_timeout_ms: int = 1000,
        persist: bool = False,
        options: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare the servers; nothing runs yet.

        Args:
            kind: "valkey" or "redis".
            primaries: how many; 3 or more if one of them is to be replaced when it is gone.
            replicas: how many for each.
            node_timeout_ms: how long a server may be silent.
            persist: write append-only files.
            options: further lines of the servers' configuration.
        """
        self.kind = kind
        many = primaries * (1 + replicas)
        ports = free_ports(2 * many)
        self.servers = [
            RedisServer(
                kind,
                persist=persist,
                port=port,
                options={
                    "cluster-enabled": "yes",
                    "cluster-port": str(bus),
                    "cluster-node-timeout": str(node_timeout_ms),
                    "cluster-config-file": "nodes.conf",
                    "repl-diskless-sync-delay": "0",
                }
                | dict(options or {}),
            )
            for port, bus in zip(ports[:many], ports[many:], strict=True)
        ]
        self.primaries, self.replicas = self.servers[:primaries], self.servers[primaries:]  #: as they were at the start
        self._buses = dict(zip(ports[:many], ports[many:], strict=True))

    @property
    def url(self) -> str:
        """For a store: ``redis+cluster://...``."""
        return f"redis+cluster://{','.join(f'127.0.0.1:{each.port}' for each in self.servers)}"

    def __enter__(self) -> Self:
        try:
            first = self.servers[0].start()
            for number, server in enumerate(self.servers[1:], 1):
                server.start()
                self.ask(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                self.ask(server, "CLUSTER", "MEET", "127.0.0.1", first.port or 0, self._buses[first.port or 0])
            share = -(-SLOTS // len(self.primaries))
            for number, server in enumerate(self.primaries):
                last = min(SLOTS, share * (number + 1)) - 1
                self.ask(server, "CLUSTER", "ADDSLOTSRANGE", share * number, last)
            _settle(lambda: all(self._sees_all(each) for each in self.servers), "the cluster")
            for number, server in enumerate(self.replicas):
                self.ask(server, "CLUSTER", "REPLICATE", self.id_of(self.primaries[number % len(self.primaries)]))
            _settle(lambda: all(self._follows(each) for each in self.replicas), "the replicas")
            _settle(lambda: all(self._is_ok(each) for each in self.servers), "the slots")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process. Idempotent."""
        for server in self.servers:
            server.stop()

    def ask(self, server: RedisServer, *words: str | int) -> Any:
        """One server's answer to a command.

        Raises:
            StoreUnavailableError: it does not answer, or with an error.
        """
        from swarm_infrastructure.store.nodes import ask_once

        return ask_once(server.url, *words)

    def id_of(self, server: RedisServer) -> str:
        """The name that the cluster has for *server*."""
        return str(self.ask(server, "CLUSTER", "MYID"))

    def owner(self, key: str) -> RedisServer:
        """The primary that has the slot of *key*, as the first server that answers knows it."""
        slot = self.slot(key)
        for server in self.servers:
            with contextlib.suppress(StoreUnavailableError):
                for first, last, primary, *_ in self.ask(server, "CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return next(each for each in self.servers if each.port == int(primary[1]))
        raise StoreUnavailableError(self.url, f"nobody has slot {slot}")

    def slot(self, key: str) -> int:
        """The slot of *key*."""
        running = next(each for each in self.servers if each.running)
        return int(self.ask(running, "CLUSTER", "KEYSLOT", key))

    def move(self, slot: int, source: RedisServer, target: RedisServer) -> int:
        """Move *slot* with its keys, key by key as ``redis-cli --cluster reshard`` does; how many keys it had."""
        self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))
        moved = 0
        while keys := self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            self.ask(source, "MIGRATE", "127.0.0.1", target.port or 0, "", 0, 5000, "KEYS", *keys)
            moved += len(keys)
        new = self.id_of(target)
        for server in (target, source, *(each for each in self.primaries if each not in (source, target))):
            if server.running:
                self.ask(server, "CLUSTER", "SETSLOT", slot, "NODE", new)
        return moved

    def _facts(self, server: RedisServer) -> dict[str, str]:
        found = self.ask(server, "CLUSTER", "INFO")
        return found if isinstance(found, dict) else dict(line.split(":", 1) for line in found.split())

    def _sees_all(self, server: RedisServer) -> bool:
        facts = self._facts(server)
        return int(facts["cluster_known_nodes"]) == len(self.servers) and int(facts["cluster_slots_ok"]) == SLOTS

    def _is_ok(self, server: RedisServer) -> bool:
        return self._facts(server)["cluster_state"] == "ok"

    def _follows(self, server: RedisServer) -> bool:
        return bool(self.ask(server, "INFO", "replication").get("master_link_status") == "up")


def free_ports(many: int) -> list[int]:
    """Ports of 127.0.0.1 on which nobody listens now, below those that the kernel gives to outgoing connections."""
    found: list[int] = []
    while len(found) < many:
        port = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT)
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found


def _settle(condition: Callable[[], bool], what: str) -> None:
    waits_until = time.monotonic() + SETTLE_S
    while not condition():
        if time.monotonic() > waits_until:
            raise ConfigurationError(f"Redis servers for tests: after {SETTLE_S:g} s still waiting for {what}")
        time.sleep(0.02)
