"""Work queues: tasks that must be done, each by one worker. A queue is a board with one section; nothing is new but the names.

::

    enqueue → waiting → dequeue → active → complete → done
                 ↑                   ↓
                 └── lease ended, or fail ── too often, or too late → quarantined
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from random import Random
from typing import Any

import structlog

from ..blackboard import Blackboard, Claim, Claimed, ClaimRequest, Item, Submission, job_board
from ..blackboard.queries import QUEUE, list_boards
from ..blackboard.retention import LogBound
from ..blackboard.sweeper import Sweeper
from ..errors import ClaimLostError, InvalidInputError, ItemNotFoundError
from ..failure_recovery import RetryPolicy, backoff_s
from ..keys import check_name
from ..store import Store
from .messages import TaskMessage

__all__ = ["TaskQueues"]

log = structlog.get_logger(__name__)
SECTION = "tasks"
LEASE_S = 60.0  # a task is not renewed: whoever needs longer says so, or extends it
MAX_CRASHES = 3
KEEP_DONE_S = 24 * 3600.0
RETRY = RetryPolicy()


class TaskQueues:
    """The work queues of a namespace.

    Args:
        store: the Redis that carries them.
        namespace: whose queues these are.
        lease_s: how long a task may take before it is offered again, unless `dequeue` says otherwise.
        keep_done_s: how long a finished task is remembered, with its result: a rule of the queue's board.
        bound: of each queue's event log.
    """

    def __init__(
        self,
        store: Store,
        namespace: str,
        *,
        lease_s: float = LEASE_S,
        keep_done_s: float = KEEP_DONE_S,
        bound: LogBound | None = None,
    ) -> None:
        self._store, self._namespace = store, namespace
        self._lease_s, self._keep_done_s, self._bound = lease_s, keep_done_s, bound
        self._random = Random()
        self._boards: dict[str, Blackboard] = {}
        self._sweepers: dict[str, Sweeper] = {}
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()

    async def board(self, queue: str) -> Blackboard:
        """The board behind a queue; made when it is first used.

        Raises:
            InvalidInputError: no name for a queue.
        """
        found = self._boards.get(check_name("queue", str(queue)))
        if found is not None:
            return found
        async with self._opening:
            if queue not in self._boards:
                # tasks carry their own limit of attempts
                rules = job_board(
                    queue + QUEUE, SECTION, lease_s=LEASE_S, max_attempts=0, max_crashes=MAX_CRASHES,
                    keep_s=self._keep_done_s,
                )  # fmt: skip
                desk = Blackboard(self._store, rules, namespace=self._namespace)
                self._boards[queue] = await self._stack.enter_async_context(desk)
        return self._boards[queue]

    async def names(self) -> list[str]:
        """Every work queue of the namespace."""
        found = await list_boards(self._store, self._namespace)
        return [name.removesuffix(QUEUE) for name in found if name.endswith(QUEUE)]

    async def enqueue(
        self, queue: str, task: TaskMessage, *, priority: int | None = None, delay_s: float = 0.0
    ) -> bool:
        """Put a task into a queue; False if a task of this id is or was there. Its priority is 0 (first) to 9."""
        return (await self.enqueue_many(queue, [task], priority=priority, delay_s=delay_s))[0]

    async def enqueue_many(
        self, queue: str, tasks: Sequence[TaskMessage], *, priority: int | None = None, delay_s: float = 0.0
    ) -> list[bool]:
        """`enqueue` for several, up to 500 of them in one round trip."""
        board = await self.board(queue)
        if priority is not None:
            tasks = [task.model_copy(update={"priority": priority}) for task in tasks]
        new = [
            Submission(
                id=task.task_id, section=SECTION, payload=task.model_dump(mode="json"), priority=task.priority,
                delay_s=delay_s,
            )
            for task in tasks
        ]  # fmt: skip
        for task in tasks:
            task.to_json()  # its limits
        return [bool(each) for each in await board.submit(*new)]

    async def dequeue(
        self, queue: str, agent_id: str, *, timeout_s: float = 5.0, lease_s: float | None = None
    ) -> TaskMessage | None:
        """The next task: priority first, then the order of arrival; None if there is none within *timeout_s*.

        It is *agent_id*'s until it is ended, or its lease has: then it is offered again, and after three such ends set
        aside. A task whose deadline has passed is set aside, and not handed out.
        """
        board = await self.board(queue)
        if timeout_s < 0:
            raise InvalidInputError("timeout", found=timeout_s, needed="seconds, 0 or more")
        request = ClaimRequest(
            agent_id=agent_id, role="", lanes=board.claims.lanes(SECTION), lease_s=lease_s or self._lease_s
        )
        try:
            async with asyncio.timeout(timeout_s or None):
                while True:
                    if timeout_s:
                        hand: list[Claimed] | str = await board.claims.wait(request)
                    else:
                        [hand] = await board.claims.claim(request)
                    if not isinstance(hand, list) or not hand:
                        return None
                    task = await self._checked(board, hand[0])
                    if task is not None:
                        return task
        except TimeoutError:
            return None

    async def complete(self, task: TaskMessage, result: Any = None) -> None:
        """The task is done; *result* is remembered for a while.

        Raises:
            ClaimLostError: its lease had ended; somebody else has it, or will.
        """
        board, claim = self._held(task)
        await board.complete(claim, result=result)

    async def fail(self, task: TaskMessage, error: str, *, retry_in_s: float | None = None) -> bool:
        """The task failed. True: it is tried again, after *retry_in_s* (by default longer with each attempt). False: it
        was tried ``max_retries`` + 1 times and is set aside.

        Raises:
            ClaimLostError: its lease had ended.
        """
        board, claim = self._held(task)
        item = await board.get(task.task_id)
        again = item.attempts <= task.max_retries
        delay_s = backoff_s(max(1, item.attempts), RETRY, self._random) if retry_in_s is None else retry_in_s
        return await board.fail(claim, error, retry_in_s=delay_s, give_up=not again) == "failed"

    async def hand_back(self, task: TaskMessage, *, reason: str = "") -> None:
        """Give the task back as if it had not been taken."""
        board, claim = self._held(task)
        await board.hand_back(claim, reason=reason)

    async def extend(self, task: TaskMessage) -> None:
        """Keep the task for another lease.

        Raises:
            ClaimLostError: its lease had ended.
        """
        board, claim = self._held(task)
        [why] = await board.claims.renew([claim])
        if why:
            raise ClaimLostError(claim.item_id, claim.agent_id, claim.token, why)

    async def length(self, queue: str) -> int:
        """Tasks that wait, with those that are delayed."""
        stats = await (await self.board(queue)).get_section_stats(SECTION)
        return int(stats["by_status"].get("waiting", 0))

    async def peek(self, queue: str, count: int = 10) -> list[TaskMessage]:
        """The next tasks, in the order in which they are handed out."""
        return [_shown(item) for item in await self._standing(queue, "waiting", count)]

    async def set_aside(self, queue: str, count: int = 100) -> list[tuple[TaskMessage, str]]:
        """Tasks that failed or crashed too often, or came too late, with the last error of each."""
        board = await self.board(queue)
        found = []
        for item in await self._standing(queue, "quarantined", count):
            errors = await board.errors(item.id)
            found.append((_shown(item), str(errors[-1]["error"]) if errors else ""))
        return found

    async def redrive(self, queue: str, task_id: str) -> None:
        """Let a task that was set aside be tried again, with all its attempts.

        Raises:
            ItemNotFoundError, WrongStatusError: it is not there, or not set aside.
        """
        await (await self.board(queue)).release(task_id, reason="redriven")

    async def result(self, queue: str, task_id: str) -> Any:
        """What `complete` was given for a task, or None.

        Raises:
            ItemNotFoundError: there is no such task any more.
        """
        item = await (await self.board(queue)).find(task_id)
        if item is None:
            raise ItemNotFoundError(task_id, queue)
        return item.result

    @property
    def in_use(self) -> bool:
        """Whether this process has used any."""
        return bool(self._boards)

    async def sweep(self) -> None:
        """Take back tasks whose lease has ended, and forget finished ones that are old; in the queues used here."""
        for queue, board in list(self._boards.items()):
            if queue not in self._sweepers:
                self._sweepers[queue] = Sweeper(board, bound=self._bound)
            await self._sweepers[queue].run_once()

    async def close(self) -> None:
        """Close the boards."""
        await self._stack.aclose()
        self._boards.clear()
        self._sweepers.clear()

    async def _standing(self, queue: str, status: str, count: int) -> list[Item]:
        return await (await self.board(queue)).queries.by_status(SECTION, status, limit=count)

    async def _checked(self, board: Blackboard, claimed: Claimed) -> TaskMessage | None:
        """The task of a claim; None if it is too late for it, or it is none: then it is set aside."""
        try:
            task = _task(claimed.item)
        except InvalidInputError as error:
            await board.fail(claimed.claim, str(error), give_up=True)
            return None
        now_ms = claimed.claim.ends_at_ms - claimed.claim.lease_s * 1000  # of Redis
        if task.deadline is not None and task.deadline.timestamp() * 1000 <= now_ms:
            await board.fail(claimed.claim, f"its deadline {task.deadline.isoformat()} has passed", give_up=True)
            return None
        task._claim = (board, claimed.claim)
        return task

    @staticmethod
    def _held(task: TaskMessage) -> tuple[Blackboard, Claim]:
        if task._claim is None:
            raise InvalidInputError(
                f"task {task.task_id!r}", found="one that was not taken here", needed="a dequeued task"
            )
        board, claim = task._claim
        return board, claim


def _task(item: Item) -> TaskMessage:
    task = TaskMessage.from_data(item.payload)
    return task.model_copy(update={"priority": item.priority})


def _shown(item: Item) -> TaskMessage:
    """The task of an item, for people: also if it is none, as one of type ``unreadable``."""
    try:
        return _task(item)
    except InvalidInputError:
        return TaskMessage(task_id=item.id, task_type="unreadable", parameters={"payload": item.payload})
