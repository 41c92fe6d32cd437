"""Work queues: every task to one worker, in order, in time, and back if nobody completes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from given import clock_of, in_time, until

from swarm_infrastructure.blackboard import Submission
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.errors import ClaimLostError, InvalidInputError
from swarm_infrastructure.message_bus import Channels, TaskMessage, TaskQueues
from swarm_infrastructure.store import Store

QUEUE = Channels.QUEUE_PRODUCTION


@pytest.fixture
async def queues(store: Store) -> AsyncIterator[TaskQueues]:
    """Work queues; their boards are audited at the end."""
    queues = TaskQueues(store, "test")
    yield queues
    names = list(queues._boards)
    await queues.close()
    for name in names:
        report = await audit(store, "test", f"{name}.queue")
        assert report.clean, report.breaches


def task(task_id: str, **facts: Any) -> TaskMessage:
    return TaskMessage(task_id=task_id, task_type="script", parameters={"n": task_id}, **facts)


async def taken(queues: TaskQueues, *, worker: str = "w", queue: str = QUEUE) -> list[str]:
    """Ids of all tasks that are handed out now, one after the other."""
    ids = []
    while (found := await queues.dequeue(queue, worker, timeout_s=0)) is not None:
        ids.append(found.task_id)
    return ids


async def test_tasks_come_by_priority_and_then_in_the_order_in_which_they_were_put_in(queues: TaskQueues) -> None:
    for n in range(12):
        await queues.enqueue(QUEUE, task(f"t{n}", priority=n % 3))
    await queues.enqueue(QUEUE, task("last"), priority=9)
    await queues.enqueue(QUEUE, task("first"), priority=0)

    assert [each.task_id for each in await queues.peek(QUEUE, 3)] == ["t0", "t3", "t6"]
    assert await queues.length(QUEUE) == 14
    assert await taken(queues) == [
        "t0", "t3", "t6", "t9", "first", "t1", "t4", "t7", "t10", "t2", "t5", "t8", "t11", "last"
    ]  # fmt: skip
    assert await queues.length(QUEUE) == 0


async def test_a_task_is_what_was_put_in(queues: TaskQueues) -> None:
    given = task("t", deadline=datetime.now(UTC) + timedelta(hours=1), estimated_tokens=2000, max_retries=1, priority=1)
    await queues.enqueue(QUEUE, given)

    mine = await queues.dequeue(QUEUE, "w")
    assert mine is not None and mine.model_dump() == given.model_dump()
    assert await queues.enqueue(QUEUE, given) is False  # one id, one task


async def test_queues_know_nothing_of_each_other(queues: TaskQueues) -> None:
    await queues.enqueue(QUEUE, task("t"))

    assert await taken(queues, queue=Channels.QUEUE_REVIEW) == []
    assert await taken(queues) == ["t"]


async def test_who_waits_at_an_empty_queue_gets_the_next_task(queues: TaskQueues) -> None:
    waiting = [asyncio.create_task(queues.dequeue(QUEUE, f"w{n}", timeout_s=20)) for n in range(3)]
    board = await queues.board(QUEUE)
    await until(lambda: any(queue.waiting for queue in board.claims._room._queues.values()))

    for n in range(3):
        await queues.enqueue(QUEUE, task(f"t{n}"))

    assert sorted(each.task_id for each in await in_time(asyncio.gather(*waiting))) == ["t0", "t1", "t2"]


async def test_nothing_within_the_timeout_is_none_and_takes_nothing(queues: TaskQueues) -> None:
    assert await in_time(queues.dequeue(QUEUE, "w", timeout_s=0.05)) is None
    assert await in_time(queues.dequeue(QUEUE, "w", timeout_s=0)) is None
    await queues.enqueue(QUEUE, task("t"))
    assert await taken(queues) == ["t"]


async def test_a_completed_task_is_gone_and_its_result_is_remembered(queues: TaskQueues) -> None:
    await queues.enqueue(QUEUE, task("t"))
    mine = await queues.dequeue(QUEUE, "w")
    assert mine is not None

    await queues.complete(mine, {"words": 120})

    assert await taken(queues) == []
    assert await queues.result(QUEUE, "t") == {"words": 120}
    await queues.complete(mine, {"words": 120})  # its first reply may have been lost


async def test_a_task_that_nobody_completes_comes_back_and_is_set_aside_after_three_times(queues: TaskQueues) -> None:
    await queues.enqueue(QUEUE, task("t"))
    clock = clock_of(await queues.board(QUEUE))
    for n in range(3):
        lost = await queues.dequeue(QUEUE, f"w{n}", lease_s=30)
        assert lost is not None
        assert await taken(queues, worker="other") == []
        await clock.advance(s=31)
        await queues.sweep()
        with pytest.raises(ClaimLostError):
            await queues.complete(lost)

    assert await taken(queues) == []
    [(aside, why)] = await queues.set_aside(QUEUE)
    assert aside.task_id == "t"
    assert "lease" in why or "crash" in why

    await queues.redrive(QUEUE, "t")
    assert await taken(queues) == ["t"]


async def test_who_needs_longer_extends(queues: TaskQueues) -> None:
    await queues.enqueue(QUEUE, task("t"))
    clock = clock_of(await queues.board(QUEUE))
    mine = await queues.dequeue(QUEUE, "w", lease_s=30)
    assert mine is not None
    for _ in range(3):
        await clock.advance(s=20)
        await queues.extend(mine)

    assert await taken(queues, worker="other") == []
    await queues.complete(mine)


async def test_a_failed_task_is_tried_as_often_as_it_says_and_then_set_aside(queues: TaskQueues) -> None:
    await queues.enqueue(QUEUE, task("t", max_retries=2))
    outcomes = []
    for n in range(3):
        mine = await queues.dequeue(QUEUE, "w")
        assert mine is not None
        outcomes.append(await queues.fail(mine, f"no {n}", retry_in_s=0))

    assert outcomes == [True, True, False]
    assert [(each.task_id, why) for each, why in await queues.set_aside(QUEUE)] == [("t", "no 2")]
    assert await taken(queues) == []


async def test_a_failed_task_waits_before_it_is_tried_again(queues: TaskQueues) -> None:
    await queues.enqueue(QUEUE, task("t"))
    clock = clock_of(await queues.board(QUEUE))
    mine = await queues.dequeue(QUEUE, "w")
    assert mine is not None
    await queues.fail(mine, "busy", retry_in_s=60)

    assert await taken(queues) == []
    assert await queues.length(QUEUE) == 1
    await clock.advance(s=61)
    assert await taken(queues) == ["t"]


async def test_a_task_after_its_deadline_is_not_handed_out_but_set_aside_with_the_reason(queues: TaskQueues) -> None:
    soon, later = datetime.now(UTC) + timedelta(minutes=5), datetime.now(UTC) + timedelta(hours=5)
    await queues.enqueue_many(QUEUE, [task("soon", deadline=soon), task("later", deadline=later), task("never")])
    await clock_of(await queues.board(QUEUE)).advance(s=600)

    assert await taken(queues) == ["later", "never"]
    [(aside, why)] = await queues.set_aside(QUEUE)
    assert aside.task_id == "soon"
    assert f"its deadline {soon.isoformat()} has passed" in why


async def test_what_is_no_task_is_set_aside_and_shown_with_the_reason(queues: TaskQueues) -> None:
    board = await queues.board(QUEUE)
    await board.submit(Submission(id="odd", section="tasks", payload={"what": "is this"}))
    await queues.enqueue(QUEUE, task("t"))

    assert [each.task_id for each in await queues.peek(QUEUE)] == ["odd", "t"]
    assert await taken(queues) == ["t"]
    [(odd, why)] = await queues.set_aside(QUEUE)
    assert (odd.task_id, odd.task_type, odd.parameters) == ("odd", "unreadable", {"payload": {"what": "is this"}})
    assert "TaskMessage: task_type" in why


async def test_a_task_that_is_handed_back_costs_no_attempt(queues: TaskQueues) -> None:
    await queues.enqueue(QUEUE, task("t", max_retries=0))
    mine = await queues.dequeue(QUEUE, "w")
    assert mine is not None
    await queues.hand_back(mine, reason="not mine")

    mine = await queues.dequeue(QUEUE, "w")
    assert mine is not None
    assert await queues.fail(mine, "no") is False


async def test_finished_tasks_are_forgotten_after_a_while(store: Store) -> None:
    queues = TaskQueues(store, "test", keep_done_s=0.001)
    await queues.enqueue_many(QUEUE, [task("done"), task("waiting")])
    mine = await queues.dequeue(QUEUE, "w")
    assert mine is not None
    await queues.complete(mine)

    async def forgotten() -> bool:
        await queues.sweep()
        return await (await queues.board(QUEUE)).find("done") is None

    await until(forgotten)
    assert await taken(queues) == ["waiting"]
    await queues.close()


@pytest.mark.parametrize("queue", ["", "Upper", "a b", "x" * 65])
async def test_a_wrong_name_is_refused(queues: TaskQueues, queue: str) -> None:
    with pytest.raises(InvalidInputError, match="queue"):
        await queues.enqueue(queue, task("t"))


async def test_only_a_task_that_was_taken_here_can_be_ended(queues: TaskQueues) -> None:
    with pytest.raises(InvalidInputError, match="task 't'"):
        await queues.complete(task("t"))
