"""Agents that only listen, and workers of a work queue, in a process of their own that the tests of the bus hurt.

``--listen N``   N agents, each busy with a slow handler; what an emergency stop reaches is written down
``--work N``     N workers that take tasks, work as long as a task's ``s`` says, and complete them
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from pathlib import Path

from ledger import Ledger

from swarm_infrastructure.errors import ClaimLostError, UnavailableError
from swarm_infrastructure.message_bus import Channels, Hub, Message, MessageBus, MessageType, TaskQueues
from swarm_infrastructure.store import Store

QUEUE = Channels.QUEUE_PRODUCTION
BUSY_S = 0.01


async def listen(bus: MessageBus, ledger: Ledger) -> None:
    async def busy(_: Message) -> None:
        await asyncio.sleep(BUSY_S)

    bus.on("note", busy)
    bus.on(MessageType.EMERGENCY, lambda message: ledger.write("stopped", agent=bus.agent_id, waiting=len(bus._normal)))
    await bus.start()


async def work(bus: MessageBus, ledger: Ledger, lease_s: float) -> None:
    while True:
        try:
            task = await bus.dequeue_task(QUEUE, timeout=5, lease_s=lease_s)
            if task is None:
                continue
            ledger.write("got", task=task.task_id, agent=bus.agent_id)
            await asyncio.sleep(task.parameters.get("s", 0.0))
            await bus.complete_task(task, {"by": bus.agent_id})
            ledger.write("completed", task=task.task_id, agent=bus.agent_id)
        except (ClaimLostError, UnavailableError) as error:
            ledger.write("refused", agent=bus.agent_id, why=str(error))


async def run(options: argparse.Namespace) -> None:
    ledger, ended = Ledger(options.ledger), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with Store(os.environ["REDIS_URL"]) as store:
        hub, queues = Hub(store, os.environ["SWARM_ID"]), TaskQueues(store, os.environ["SWARM_ID"])
        buses = [MessageBus(hub, queues, f"a{os.getpid()}_{n}") for n in range(options.listen or options.work)]
        if options.listen:
            await asyncio.gather(*(listen(bus, ledger) for bus in buses))
        working = [asyncio.create_task(work(bus, ledger, options.lease_s)) for bus in buses if options.work]
        ledger.write("up", parent=os.getppid())
        await ended.wait()
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        for bus in buses:
            await bus.stop()
        await hub.close()
        await queues.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--listen", type=int, default=0)
    parser.add_argument("--work", type=int, default=0)
    parser.add_argument("--lease-s", type=float, default=30.0)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
