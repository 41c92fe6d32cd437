"""What the bus carries: a message to fifty agents, a task to a worker that waits for it, a stream to a group that
acknowledges each message. Used by ``bench.py``."""

from __future__ import annotations

import asyncio
import statistics
import time

from swarm_infrastructure.message_bus import (
    Channels,
    Delivery,
    Hub,
    Message,
    MessageBus,
    Processor,
    TaskMessage,
    TaskQueues,
    TopicMessage,
    Topics,
)
from swarm_infrastructure.store import Store

__all__ = ["bus"]

LISTENERS, AT_ONCE = 50, 100


async def bus(url: str, *, messages: int, samples: int) -> dict[str, float]:
    """Deliveries per second to handlers; how long after an enqueue a waiting `dequeue_task` returns (µs); messages per
    second into a topic and through a processor that publishes what comes of each."""
    async with Store(url) as here, Store(url) as there:
        told = await _fan_out(here, there, messages) | await _dequeue(here, there, samples)
        return told | await _topic(here, messages * 5)


async def _fan_out(here: Store, there: Store, messages: int) -> dict[str, float]:
    speaker, hub, queues = Hub(here, "bench"), Hub(there, "bench"), TaskQueues(there, "bench")
    heard, everything = 0, asyncio.Event()

    def count(_: Message) -> None:
        nonlocal heard
        heard += 1
        if heard == messages * LISTENERS:
            everything.set()

    buses = [MessageBus(hub, queues, f"a{n}") for n in range(LISTENERS)]
    for each in buses:
        each.on("note", count)
        await each.start()
    note = Message.create("note", "bench", payload={"text": "x" * 200})
    began = time.perf_counter()
    for _ in range(messages // AT_ONCE):
        await asyncio.gather(*(speaker.publish(Channels.BROADCAST_ALL, note) for _ in range(AT_ONCE)))
    published = time.perf_counter() - began
    await everything.wait()
    seconds = time.perf_counter() - began
    for each in buses:
        await each.stop()
    await hub.close()
    await speaker.close()
    return {"published_per_s": messages / published, "deliveries_per_s": messages * LISTENERS / seconds}


class _Copy(Processor):
    source, target = "bench.in", "bench.out"
    batch = 256
    everything: asyncio.Event
    left = 0

    async def process(self, message: TopicMessage, delivery: Delivery) -> dict[str, str]:
        self.left -= 1
        if self.left == 0:
            self.everything.set()
        return {"text": "y" * 200}


async def _topic(store: Store, messages: int) -> dict[str, float]:
    topics = Topics(store, "bench")
    topic, out = await topics.open("bench.in"), await topics.open("bench.out")
    bodies, keys = [{"text": "x" * 200}] * 256, [f"key{n}" for n in range(256)]
    began = time.perf_counter()
    for _ in range(messages // 256):
        await topic.publish_many(bodies, keys=keys)
    published = messages // 256 * 256 / (time.perf_counter() - began)
    copy = _Copy(topics)
    copy.everything, copy.left = asyncio.Event(), messages // 256 * 256
    began = time.perf_counter()
    await copy.start()
    await copy.everything.wait()
    seconds = time.perf_counter() - began
    await copy.stop()
    assert len(await out.read(count=10)) == 10
    return {"topic_published_per_s": published, "topic_processed_per_s": messages // 256 * 256 / seconds}


async def _dequeue(here: Store, there: Store, samples: int) -> dict[str, float]:
    putting, taking = TaskQueues(here, "bench"), TaskQueues(there, "bench")
    waits: list[float] = []
    for n in range(samples + 20):
        waiting = asyncio.create_task(taking.dequeue("bench", "w", timeout_s=30))
        await asyncio.sleep(0.002)  # it waits by now
        began = time.perf_counter()
        await putting.enqueue("bench", TaskMessage(task_id=f"t{n}", task_type="job"))
        task = await waiting
        took = time.perf_counter() - began
        assert task is not None
        await taking.complete(task)
        if n >= 20:
            waits.append(took * 1e6)
    await putting.close()
    await taking.close()
    cuts = statistics.quantiles(waits, n=100)
    return {"dequeue_p50_us": cuts[49], "dequeue_p95_us": cuts[94]}
