"""Processors and timers as parts of a swarm: they start, hear of new messages at once, and leave in order."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import pytest
from given import in_time, until
from pydantic import BaseModel

from swarm_infrastructure import Processor, Settings, Swarm, SwarmInfrastructure, Tick, job_board
from swarm_infrastructure.errors import InvalidInputError
from swarm_infrastructure.message_bus import Delivery

JOBS = job_board("jobs")
PATIENCE_S = 20.0


class Line(BaseModel):
    """What is said."""

    text: str


class Upper(Processor):
    """Says it louder."""

    source, target = "lines", "loud"
    poll_s = 60.0  # so that only a hint can be quick

    async def process(self, message: Line, delivery: Delivery) -> Line:
        return Line(text=message.text.upper())


class Clock(Processor):
    """Counts ticks."""

    source = "ticks"
    seen: list[Tick]

    async def process(self, message: Tick, delivery: Delivery) -> None:
        type(self).seen.append(message)


def swarm_of(redis_server: Any, **facts: Any) -> Swarm:
    settings = Settings(redis_url=redis_server.url, namespace="t" + secrets.token_hex(6), shutdown_grace_s=2)
    return Swarm(board=JOBS, settings=settings, **facts)


async def started(swarm: Swarm, infrastructure: SwarmInfrastructure) -> tuple[Any, asyncio.Task[None]]:
    worker = swarm.make_worker(infrastructure)
    return worker, asyncio.create_task(worker.run(signals=False))


async def test_a_swarm_runs_its_processors_and_an_idle_one_hears_of_a_message_at_once(redis_server: Any) -> None:
    swarm = swarm_of(redis_server, processors=[Upper])
    async with swarm.infrastructure() as infrastructure:
        worker, working = await started(swarm, infrastructure)
        topic = await infrastructure.topics.open("lines", partitions=2)
        loud = await infrastructure.topics.open("loud", partitions=2)
        for n in range(3):  # the second and third come while it is idle
            await topic.publish(Line(text=f"line {n}"), key="a")

            async def said(n: int = n) -> bool:
                return len(await loud.read()) == n + 1

            await until(said, PATIENCE_S)

        assert [(await message.decode(Line)).text for message in await loud.read()] == ["LINE 0", "LINE 1", "LINE 2"]
        worker.tell_to_stop()
        await in_time(working, PATIENCE_S)
        assert (await topic.lag("upper")).total == 0


async def test_a_timer_of_a_swarm_ticks_once_though_two_workers_run_it(redis_server: Any) -> None:
    Clock.seen = []
    swarm = swarm_of(redis_server, processors=[Clock], timers=[{"name": "often", "every_s": 0.2, "payload": {"n": 1}}])
    async with swarm.infrastructure() as one, swarm.infrastructure() as other:
        (first, working), (second, working_too) = await started(swarm, one), await started(swarm, other)
        await until(lambda: len(Clock.seen) >= 5, PATIENCE_S)
        for worker in (first, second):
            worker.tell_to_stop()
        await in_time(asyncio.gather(working, working_too), PATIENCE_S)

        at = [tick.at for tick in Clock.seen]
        assert len(set(at)) == len(at)
        assert {(tick.timer, tick.payload["n"]) for tick in Clock.seen} == {("often", 1)}


def test_a_swarm_of_nobody_is_refused(redis_server: Any) -> None:
    with pytest.raises(InvalidInputError, match="at least one agent or processor"):
        swarm_of(redis_server)
