"""Topics that tests share: the namespace's clock, and looking until something is so."""

from __future__ import annotations

from typing import Any

from swarm_infrastructure.message_bus.topics import Topic, Topics
from swarm_infrastructure.testing import ManualClock

__all__ = ["bus_clock", "stored"]


def bus_clock(topics: Topics) -> ManualClock:
    """Moves the clock of a namespace's bus."""

    async def add_ms(ms: int) -> int:
        return int(await topics.store.command("HINCRBY", topics.keys.rules, "clock_offset_ms", ms))

    return ManualClock(add_ms)


async def stored(topic: Topic) -> list[Any]:
    """The bodies of all its messages, in order of time."""
    return [await each.decode(Any, topic.codec) for each in await topic.read(count=100_000)]
