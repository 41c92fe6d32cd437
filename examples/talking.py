"""Agents that talk: a message that overtakes, a call, a work queue, a typed topic with a processor, a debate, a timer.

    python examples/talking.py

Runs on a private Redis in ``./.swarm``; needs no keys and no network.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from pydantic import BaseModel

from swarm_infrastructure import (
    Ballot,
    Channels,
    Debate,
    Debater,
    Message,
    MessageType,
    Processor,
    Seat,
    SwarmInfrastructure,
    TaskMessage,
    job_board,
)
from swarm_infrastructure.message_bus import Delivery


class Line(BaseModel):
    """Something that was said."""

    session: str
    text: str


class Words(BaseModel):
    """How many words it had."""

    session: str
    words: int


class WordCount(Processor):
    """Counts words: each line once, lines of a session in order."""

    source, target = "lines", "words"

    async def process(self, message: Line, delivery: Delivery) -> Words:
        """Count one line."""
        return Words(session=message.session, words=len(message.text.split()))


class Optimist(Debater):
    """Is for it."""

    async def argue(self, debate: Debate, seat: Seat) -> Ballot:
        """Say yes."""
        return Ballot(choice="yes", confidence=0.8, argument="it can only get better")


class Pessimist(Debater):
    """Is against it."""

    async def argue(self, debate: Debate, seat: Seat) -> Ballot:
        """Say no."""
        return Ballot(choice="no", confidence=0.6, argument="it never did")


async def talk(swarm: SwarmInfrastructure) -> None:
    """Messages and calls: quick, and lost where nobody listens."""
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with swarm.bus_of("writer_1", "script_writer") as writer, swarm.bus_of("boss") as boss:
        writer.on(MessageType.TASK_ASSIGN, lambda message: heard.put_nowait(message.payload["task"]))
        await boss.send_to_agent("writer_1", Message.create(MessageType.TASK_ASSIGN, "boss", payload={"task": "write"}))
        await boss.publish(
            Channels.TIER_PRODUCER, Message.create(MessageType.TASK_ASSIGN, "boss", payload={"task": "hurry"})
        )
        await writer.register_rpc_handler("swarm.rpc.writer", "count", lambda text: len(text.split()))
        print(
            "message:",
            await heard.get(),
            await heard.get(),
            "| call:",
            await boss.call("swarm.rpc.writer", "count", "three words long"),
        )


async def queue(swarm: SwarmInfrastructure) -> None:
    """A work queue: each task to one worker, and back if it dies."""
    bus = swarm.message_bus
    await bus.enqueue_task(Channels.QUEUE_PRODUCTION, TaskMessage(task_type="cut", parameters={"scene": 2}))
    await bus.enqueue_task(Channels.QUEUE_PRODUCTION, TaskMessage(task_type="cut", parameters={"scene": 1}), priority=0)
    scenes = []
    while (task := await bus.dequeue_task(Channels.QUEUE_PRODUCTION, timeout=0)) is not None:
        scenes.append(task.parameters["scene"])
        await bus.complete_task(task)
    print("queue: scenes", *scenes)


async def topic(swarm: SwarmInfrastructure) -> None:
    """A topic: durable, in order per key, and what a processor answers is accepted once."""
    lines, words = await swarm.topics.open("lines"), await swarm.topics.open("words")
    for text in ("the quick brown fox", "jumps", "over the lazy dog"):
        await lines.publish(Line(session="s1", text=text), key="s1")
    processor, counted = WordCount(swarm.topics), Counter[str]()
    await processor.start()
    async with words.consume("readers") as deliveries:  # a group of its own: it goes on where it stopped last time
        async for delivery in deliveries:
            said = await delivery.decode(Words)
            counted[said.session] += said.words
            await delivery.done()
            if counted["s1"] == 9:
                break
    await processor.stop()
    print("topic:", dict(counted), "| behind:", (await lines.lag("word_count")).total)


async def debate(swarm: SwarmInfrastructure) -> None:
    """A debate: one vote each, weighed by confidence, and an outcome in any case."""
    agents = [Optimist("optimist_1", swarm=swarm), Pessimist("pessimist_1", swarm=swarm)]
    for agent in agents:
        await agent.start()
    asked = await swarm.debates.open(
        f"d{asyncio.get_running_loop().time():.6f}", "Shall we?", ("yes", "no"), voters=["optimist_1", "pessimist_1"],
        quorum=2, deadline_s=10,
    )  # fmt: skip
    verdict = await swarm.debates.wait(asked.id)
    print("debate:", verdict.outcome, verdict.position, f"{verdict.share:.0%}")
    for agent in agents:
        await agent.stop()


async def main() -> None:
    """All of it."""
    async with SwarmInfrastructure(job_board("talking")) as swarm:
        for show in (talk, queue, topic, debate):
            await show(swarm)
        swarm.timers.add("every_minute", cron="* * * * *", topic="ticks")
        await swarm.timers.run_once()
        print("topics:", *await swarm.topics.names())


if __name__ == "__main__":
    asyncio.run(main())
