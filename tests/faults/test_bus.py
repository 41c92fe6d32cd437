"""The bus and its work queues among processes, some of which are killed."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from arena import ROUNDS, SEED, Arena, spread
from lab import HERE, SLACK_S, until
from talkers import QUEUE

from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.errors import DeliveryLostError, UnavailableError
from swarm_infrastructure.message_bus import Hub, Message, MessageBus, MessageType, TaskMessage, TaskQueues, Topics
from swarm_infrastructure.store import Store

pytestmark = [pytest.mark.timeout(1800), pytest.mark.any_server]
PROCESSES, AGENTS, NOTES = 4, 50, 10_000
STOP_WITHIN_S = 0.25
QUEUE_LEASE_S = 2.0


class TalkingArena(Arena):
    """An arena with a bus, and processes on it."""

    async def __aenter__(self) -> TalkingArena:
        await super().__aenter__()
        self.hub, self.queues = Hub(self.store, self.namespace), TaskQueues(self.store, self.namespace)
        self.bus = MessageBus(self.hub, self.queues, "tester")
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.bus.stop()
        await self.hub.close()
        await self.queues.close()
        await super().__aexit__(*error)

    async def talkers(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(HERE / "talkers.py"), "--ledger", str(self.ledger.path), *words]
        process = subprocess.Popen(command, env=self.environment | {"PYTHONPATH": str(HERE)}, stderr=subprocess.DEVNULL)
        self.processes.append(process)
        await until(lambda: process.pid in {line["pid"] for line in self.ledger.lines("up")}, "a talker")
        return process


@pytest.fixture
async def arena(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TalkingArena]:
    async with TalkingArena(request.config.getoption("--redis-kind"), tmp_path) as arena:
        yield arena


async def test_an_emergency_stop_reaches_fifty_busy_agents_in_four_processes(arena: TalkingArena) -> None:
    counts = [AGENTS // PROCESSES + (n < AGENTS % PROCESSES) for n in range(PROCESSES)]
    await asyncio.gather(*(arena.talkers("--listen", str(count)) for count in counts))
    slowest = []
    for n in range(ROUNDS):
        before = len(arena.ledger.lines("stopped"))
        for start in range(0, NOTES, 500):
            notes = (Message.create("note", "tester", payload=n) for n in range(start, start + 500))
            await asyncio.gather(*(arena.bus.broadcast(note) for note in notes))
        began = time.time()
        await arena.bus.broadcast(Message.create(MessageType.EMERGENCY, "tester", payload=n))
        await until(lambda: len(arena.ledger.lines("stopped")) - before >= AGENTS, "every agent")  # noqa: B023
        stopped = arena.ledger.lines("stopped")[before:]

        assert len({line["agent"] for line in stopped}) == len(stopped) == AGENTS
        assert min(line["waiting"] for line in stopped) > 0.5 * NOTES  # they had other things to do
        slowest.append(max(line["at"] for line in stopped) - began)
    assert max(slowest) <= STOP_WITHIN_S, f"{slowest} (seed {SEED})"
    arena.report(
        "emergency stop", rounds=ROUNDS, agents=AGENTS, processes=PROCESSES, queued=NOTES, slowest_s=round(max(slowest), 4),
        median_of_slowest_s=round(statistics.median(slowest), 4),
    )  # fmt: skip


async def test_each_of_a_thousand_tasks_is_delivered_once_to_twenty_workers_in_order(arena: TalkingArena) -> None:
    past = "2026-01-01T00:00:00Z"
    tasks = [TaskMessage(task_id=f"t{n:04d}", task_type="job", priority=n % 3) for n in range(1000)]
    late = [TaskMessage.from_data({"task_id": f"x{n}", "task_type": "job", "deadline": past}) for n in range(50)]
    for start in range(0, 1000, 100):
        await arena.queues.enqueue_many(QUEUE, tasks[start : start + 100])
        await arena.queues.enqueue_many(QUEUE, late[start // 20 : start // 20 + 5])
    await asyncio.gather(*(arena.talkers("--work", "5") for _ in range(PROCESSES)))
    await until(lambda: len(arena.ledger.lines("completed")) >= 1000, "all tasks")

    got = [line["task"] for line in arena.ledger.lines("got")]
    assert Counter(got) == Counter(task.task_id for task in tasks)
    assert not arena.ledger.lines("refused")
    board = await arena.queues.board(QUEUE)
    tokens = {item.id: item.token for item in await board.queries.by_status("tasks", "done", limit=2000)}
    in_order = sorted(tasks, key=lambda task: (task.priority, task.task_id))
    dealt = sorted(tokens, key=lambda task_id: tokens[task_id])  # tokens grow with each claim, so this is the order
    assert dealt == [task.task_id for task in in_order]
    aside = await arena.queues.set_aside(QUEUE, 100)
    assert {task.task_id for task, _ in aside} == {task.task_id for task in late}
    assert (await audit(arena.store, arena.namespace, QUEUE + ".queue")).clean
    arena.report("work queue", tasks=1000, workers=20, processes=PROCESSES, delivered_twice=0, lost=0, late_delivered=0)


async def test_tasks_of_killed_workers_are_offered_again_and_each_is_completed_once(arena: TalkingArena) -> None:
    recovered, killed = list[float](), 0
    for n in range(ROUNDS):
        tasks = [TaskMessage(task_id=f"k{n}_{i}", task_type="job", parameters={"s": 0.02}) for i in range(400)]
        names = {task.task_id for task in tasks}
        words = ("--work", "5", "--lease-s", str(QUEUE_LEASE_S))
        workers = await asyncio.gather(*(arena.talkers(*words) for _ in range(PROCESSES)))
        await arena.queues.enqueue_many(QUEUE, tasks)

        def lines(what: str, names: set[str] = names) -> list[dict[str, object]]:
            return [line for line in arena.ledger.lines(what) if line["task"] in names]

        await until(lambda lines=lines: len(lines("completed")) >= 100, "the middle of the work")
        victims = arena.random.sample(workers, 2)
        for victim in victims:
            victim.kill()
        at = time.time()
        await until(
            lambda n=n: _done(arena, 400 * (n + 1)), "all tasks"
        )  # one may die between its last call and its last line
        twice = {task for task, times in Counter(line["task"] for line in lines("got")).items() if times > 1}
        killed += len(twice)
        recovered += [
            float(max(line["at"] for line in lines("got") if line["task"] == task)) - at for task in sorted(twice)
        ]
        assert Counter(line["task"] for line in lines("completed")).most_common(1)[0][1] == 1, f"seed {SEED}"
        assert {line["pid"] for line in lines("got") if line["task"] in twice} & {victim.pid for victim in victims}
        for worker in workers:
            if worker not in victims:
                worker.terminate()
                await asyncio.to_thread(worker.wait)
    assert (await audit(arena.store, arena.namespace, QUEUE + ".queue")).clean
    assert recovered and max(recovered) <= QUEUE_LEASE_S + SLACK_S, f"{max(recovered)} (seed {SEED})"
    arena.report(
        "work queue, kill -9", fault="F1", rounds=ROUNDS, n=400 * ROUNDS, run_twice=killed, lost=0, accepted_twice=0,
        lease_s=QUEUE_LEASE_S,
        **spread(recovered),
    )  # fmt: skip


async def _done(arena: TalkingArena, tasks: int) -> bool:
    board = await arena.queues.board(QUEUE)
    return (await board.queries.counts()).get("tasks/done/", 0) >= tasks


async def test_who_waits_at_an_empty_queue_has_a_task_soon_after_it_came(arena: TalkingArena) -> None:
    await arena.talkers("--work", "1")
    waits = []
    for n in range(200):
        await arena.queues.enqueue(QUEUE, TaskMessage(task_id=f"w{n}", task_type="job"))
        began = time.time()
        await until(lambda n=n: len(arena.ledger.lines("completed")) == n + 1, "the task", every_s=0.001)
        waits.append(max(0.0, arena.ledger.lines("got")[-1]["at"] - began))
    p95 = statistics.quantiles(waits, n=20)[-1]
    assert p95 <= 0.02, f"p95 {p95 * 1000:.1f} ms"
    arena.report(
        "dequeue of an empty queue",
        samples=200,
        p50_ms=round(statistics.median(waits) * 1000, 2),
        p95_ms=round(p95 * 1000, 2),
    )


async def test_fifty_groups_lose_nothing_and_keep_the_order_of_keys_though_connections_are_cut(
    arena: TalkingArena,
) -> None:
    groups, messages, keys = 50, 2000, 50
    stores = [await Store(arena.server.url).__aenter__() for _ in range(5)]
    publishing = Topics(stores[0], arena.namespace)
    topic = await publishing.open("news", partitions=4)
    for group in range(groups):  # so that each begins before the first message
        async with topic.consume(f"g{group}", poll_s=0.05):
            pass
    got: list[dict[str, list[int]]] = [{f"k{n}": [] for n in range(keys)} for _ in range(groups)]
    ended, killed = asyncio.Event(), 0

    async def read(group: int) -> None:
        topic = await Topics(stores[group % 5], arena.namespace).open("news")
        async with topic.consume(f"g{group}", poll_s=0.05, lease_s=10, batch=200) as deliveries:
            async for delivery in deliveries:
                try:
                    await delivery.done()
                except DeliveryLostError:
                    continue  # it comes again
                except UnavailableError:
                    await delivery.done()  # the same ending again
                got[group][delivery.message.key].append(await delivery.decode(int))
                if sum(map(len, got[group].values())) == messages:
                    return

    async def kill() -> None:
        nonlocal killed
        while not ended.is_set():
            for kind in ("normal", "pubsub"):
                killed += int(await arena.store.command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"))
            await asyncio.wait({asyncio.ensure_future(ended.wait())}, timeout=0.5)

    killing = asyncio.create_task(kill())
    reading = [asyncio.create_task(read(group)) for group in range(groups)]
    for n in range(0, messages, 100):
        batch = range(n, n + 100)
        await topic.publish_many(
            [*batch], keys=[f"k{each % keys}" for each in batch], ids=[f"m{each}" for each in batch]
        )
        await asyncio.sleep(0.2)  # the pace of a busy topic, so that there are several cuts
    async with asyncio.timeout(300):
        await asyncio.gather(*reading)
    ended.set()
    await killing

    for group in got:
        for key, numbers in group.items():
            assert numbers == [*range(int(key[1:]), messages, keys)], f"{key}: {numbers} (seed {SEED})"
    assert await topic.dead_letters() == []
    assert killed >= groups
    for store in stores:
        await store.close()
    arena.report(
        "topics, connections cut every 0.5 s", fault="F7", n=groups * messages, groups=groups, messages=messages, lost=0,
        doubled=0, out_of_order=0, connections_cut=killed,
    )  # fmt: skip
