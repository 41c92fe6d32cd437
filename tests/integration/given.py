"""Steps that many tests begin with, and the tape that sends a call again as if its reply had been lost."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from swarm_infrastructure.blackboard import Blackboard, Claimed, Item, Submission
from swarm_infrastructure.blackboard.claims import ClaimRequest
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import ManualClock

__all__ = [
    "Connect",
    "OpenBoard",
    "Tape",
    "a_request",
    "clock_of",
    "given_claim",
    "given_item",
    "given_items",
    "held_call",
    "in_time",
    "snapshot",
    "until",
]


Connect = Callable[..., Awaitable[Store]]  #: the fixture ``connect``
OpenBoard = Callable[..., Awaitable[Blackboard]]  #: the fixture ``open_board``


def clock_of(blackboard: Blackboard) -> ManualClock:
    """Moves the clock of one board."""

    async def add_ms(ms: int) -> int:
        return int(await blackboard.store.command("HINCRBY", blackboard.keys.rules, "clock_offset_ms", ms))

    return ManualClock(add_ms)


async def given_item(board: Blackboard, item_id: str = "a", section: str | None = None, **facts: Any) -> Item:
    """One item on the board, in its first section unless one is named."""
    section = section or next(iter(board.board.sections))
    facts.setdefault("payload", {"title": f"story {item_id}"})
    [submitted] = await board.submit(Submission(id=item_id, section=section, **facts))
    assert submitted.accepted
    return await board.get(item_id)


async def given_items(board: Blackboard, *item_ids: str, section: str | None = None, **facts: Any) -> None:
    """Several items, in this order."""
    section = section or next(iter(board.board.sections))
    payload = facts.pop("payload", {})
    answers = await board.submit(*(Submission(id=each, section=section, payload=payload, **facts) for each in item_ids))
    assert all(answers)


async def given_claim(
    board: Blackboard, item_id: str = "a", agent: str = "worker_1", *, lease_s: float | None = None, **facts: Any
) -> Claimed:
    """A claim on one item, which is put on the board if it isn't there."""
    item = await board.find(item_id) or await given_item(board, item_id, **facts)
    claimed = await board.claims.claim_item(item.id, agent, lease_s=lease_s)
    assert claimed is not None
    return claimed


def a_request(board: Blackboard, agent: str = "worker_1", *, section: str | None = None, **facts: Any) -> ClaimRequest:
    """What an agent asks for: one item of the board's first section unless another is named."""
    section = section or next(iter(board.board.sections))
    lanes = board.claims.lanes(section, capabilities=facts.pop("capabilities", ()))
    facts.setdefault("lease_s", board.board.section(section).lease_s)
    return ClaimRequest(agent_id=agent, role=facts.pop("role", "worker"), lanes=lanes, **facts)


async def snapshot(store: Store) -> dict[bytes, Any]:
    """Everything that Redis holds: two equal snapshots mean that nothing was written in between."""
    found: dict[bytes, Any] = {}
    for key in await store.command("KEYS", "*"):
        match await store.command("TYPE", key):
            case b"string":
                found[key] = await store.command("GET", key)
            case b"hash":
                found[key] = await store.command("HGETALL", key)
            case b"list":
                found[key] = await store.command("LRANGE", key, 0, -1)
            case b"zset":
                found[key] = await store.command("ZRANGE", key, 0, -1, "WITHSCORES")
            case b"stream":
                found[key] = await store.command("XRANGE", key, "-", "+")
            case other:
                raise AssertionError(f"{key!r} is a {other!r}, which no board holds")
    return found


async def in_time(waiting: Awaitable[Any], timeout_s: float = 5.0) -> Any:
    """The answer of *waiting*; TimeoutError, and so a failed test, if it takes too long."""
    return await asyncio.wait_for(waiting, timeout_s)


async def until(condition: Callable[[], Any], timeout_s: float = 5.0) -> None:
    """Wait for something that nobody announces; *condition* may be a coroutine function."""
    async with asyncio.timeout(timeout_s):
        while True:
            answer = condition()
            if await answer if inspect.isawaitable(answer) else answer:
                return
            await asyncio.sleep(0.005)


@dataclass(frozen=True)
class Call:
    """One call of a function of the library."""

    function: str
    keys: Sequence[str]
    args: Sequence[Any]
    answer: Any


class Tape:
    """Records the calls that go to a store, and plays them again."""

    def __init__(self, store: Store) -> None:
        self._call = store.call
        self.calls: list[Call] = []
        store.call = self._recorded  # type: ignore[method-assign]

    async def _recorded(self, function: str, keys: Sequence[str], args: Sequence[Any] = (), **options: Any) -> Any:
        answer = await self._call(function, keys, args, **options)
        self.calls.append(Call(function, keys, args, answer))
        return answer

    def last(self, function: str) -> Call:
        """The newest call of *function*."""
        return next(call for call in reversed(self.calls) if call.function == function)

    def count(self, function: str) -> int:
        """How often *function* was called."""
        return sum(call.function == function for call in self.calls)

    async def again(self, call: Call) -> Any:
        """The answer to *call*, sent once more: what a client gets whose first reply was lost."""
        return await self._call(call.function, call.keys, call.args)


@asynccontextmanager
async def held_call(store: Store, function: str) -> AsyncIterator[tuple[asyncio.Event, asyncio.Event]]:
    """The next call of *function* is executed, but its reply waits: ``(executed, let it come)``."""
    original, executed, let = store.call, asyncio.Event(), asyncio.Event()

    async def call(name: str, *args: Any, **options: Any) -> Any:
        answer = await original(name, *args, **options)
        if name == function and not executed.is_set():
            executed.set()
            await let.wait()
        return answer

    store.call = call  # type: ignore[method-assign]
    try:
        yield executed, let
    finally:
        let.set()
        store.call = original  # type: ignore[method-assign]
