"""One message to fifty subscribers of one process, by the clients that there are.

A script of its own for each, run as ``python -m peers.fanout.NAME ORDER`` in its environment, where ORDER is JSON: ``url``
of Redis, ``samples``, ``most_s`` for them, and ``connections`` where there is a choice.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ..process import prefer_uvloop

__all__ = ["BODY", "CHANNEL", "FANOUTS", "SUBSCRIBERS", "Ear", "Fanout", "measure", "order", "run"]

SUBSCRIBERS = 50
CHANNEL = "news"
BODY = '{"kind":"finding","section":"research","body":"' + "x" * 251 + '"}'  # 300 bytes
WARM_UP = 20
AHEAD = 20  # messages on their way at once, so that no buffer overflows and nobody is cut off
SETTLE_S = 0.5  # until everybody has subscribed; not every client says when


@dataclass(frozen=True, slots=True, kw_only=True)
class Fanout:
    """A client, and how it is set up."""

    module: str
    environment: str
    packages: tuple[str, ...]
    settings: str
    connections: int = 1  #: where there is a choice


FANOUTS = {
    "ours": Fanout(
        module="ours_script", environment="ours", packages=("swarm-infrastructure",),
        settings="50 MessageBus of one process, a handler each; numbered messages, history kept",
    ),
    "redis-py-50": Fanout(
        module="redis_py_script", environment="peers", packages=("redis", "hiredis"), connections=50,
        settings="50 connections, each its own PubSub",
    ),
    "redis-py-1": Fanout(
        module="redis_py_script", environment="peers", packages=("redis", "hiredis"),
        settings="1 connection, 50 queues behind it by hand",
    ),
    "coredis": Fanout(
        module="coredis_script", environment="peers", packages=("coredis",), settings="50 PubSub objects", connections=50
    ),
    "faststream": Fanout(
        module="faststream_script", environment="peers", packages=("faststream",), connections=50,
        settings="50 subscribers, polling_interval 1 ms (1 s by default)",
    ),
}  # fmt: skip


class Ear:
    """Counts what all subscribers together have heard."""

    def __init__(self) -> None:
        self.heard = 0
        self.first_at = self.last_at = 0.0
        self._enough = 0
        self._came = asyncio.Event()

    def hear(self, *_: Any) -> None:
        """One subscriber has heard one message."""
        self.heard += 1
        if self.heard == 1:
            self.first_at = time.perf_counter()
        if self.heard == self._enough:
            self.last_at = time.perf_counter()
            self._came.set()

    def listen_for(self, messages: int) -> None:
        """Count anew, up to so many messages to everybody."""
        self.heard, self._enough = 0, messages * SUBSCRIBERS
        self._came.clear()

    async def until_heard(self) -> None:
        """Return when everybody has heard everything."""
        async with asyncio.timeout(60):
            await self._came.wait()


def order() -> dict[str, Any]:
    """What this script is to do."""
    return {"samples": 1000, "most_s": 60.0, "connections": 1} | json.loads(sys.argv[1])


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a script."""
    prefer_uvloop()
    asyncio.run(main())  # type: ignore[arg-type]


async def measure(publish: Callable[[], Awaitable[Any]], ear: Ear) -> None:
    """One message at a time: µs until the first and until the last has heard it; then many: deliveries a second."""
    samples, most_s = int(order()["samples"]), float(order()["most_s"])
    await asyncio.sleep(SETTLE_S)
    firsts: list[float] = []
    lasts: list[float] = []
    ends = time.monotonic() + most_s
    for n in range(-WARM_UP, samples):
        if len(lasts) > WARM_UP and time.monotonic() > ends:
            break
        ear.listen_for(1)
        asked = time.perf_counter()
        await publish()
        await ear.until_heard()
        if n >= 0:
            firsts.append((ear.first_at - asked) * 1e6)
            lasts.append((ear.last_at - asked) * 1e6)
    samples = len(lasts)  # who took long for them is given as many again
    ear.listen_for(samples)
    began = time.perf_counter()
    for n in range(1, samples + 1):
        await publish()
        while n * SUBSCRIBERS - ear.heard > AHEAD * SUBSCRIBERS:
            await asyncio.sleep(0)
    await ear.until_heard()
    per_s = samples * SUBSCRIBERS / (ear.last_at - began)
    print("\nPEER " + json.dumps({"per_s": per_s, "first_us": firsts, "last_us": lasts}), flush=True)
