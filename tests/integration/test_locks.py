"""Locks: one holder at a time, free again when it dies, extended and freed by the holder alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from given import Connect, OpenBoard, clock_of, given_item, held_call, in_time, until

from swarm_infrastructure.blackboard import Blackboard
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.blackboard.locks import Lock
from swarm_infrastructure.errors import (
    ClaimLostError,
    InvalidInputError,
    LockAcquisitionError,
    LockNotAcquiredError,
    StoreUnavailableError,
)


@pytest.fixture
async def other(board: Blackboard, open_board: OpenBoard, connect: Connect) -> AsyncIterator[Blackboard]:
    """The board as another process sees it; the locks' own board is audited in the end."""
    yield await open_board(board.board, on=await connect(board.store.url))
    report = await audit(board.store, board.namespace, "jobs.locks")
    assert report.clean, "\n".join(map(str, report.breaches))


async def locks_of(board: Blackboard) -> Blackboard:
    """The board that the locks of *board* stand on."""
    return (await board._lock_table())._desk


async def test_of_all_who_want_a_lock_one_is_inside_at_a_time(board: Blackboard, other: Blackboard) -> None:
    inside, most, entries = 0, 0, 0

    async def enter(blackboard: Blackboard, agent: str) -> None:
        nonlocal inside, most, entries
        async with blackboard.acquire_lock("a", agent, timeout=20):
            inside += 1
            most, entries = max(most, inside), entries + 1
            await asyncio.sleep(0.002)
            inside -= 1

    await in_time(asyncio.gather(*(enter((board, other)[n % 2], f"w{n}") for n in range(12))), 20)

    assert (most, entries) == (1, 12)


async def test_who_waits_too_long_is_told_who_holds_the_lock(board: Blackboard, other: Blackboard) -> None:
    async with board.acquire_lock("a", "w1"):
        with pytest.raises(LockNotAcquiredError) as refused:
            async with other.acquire_lock("a", "w2", timeout=0.05):
                pytest.fail("two were inside")
        async with other.acquire_lock("b", "w2", timeout=0):
            pass  # another resource is another lock

    assert (refused.value.resource, refused.value.agent_id, refused.value.holder) == ("a", "w2", "w1")
    assert LockAcquisitionError is LockNotAcquiredError


async def test_the_same_agent_cannot_enter_twice(board: Blackboard, other: Blackboard) -> None:
    async with board.acquire_lock("a", "w1"):
        with pytest.raises(LockNotAcquiredError):
            async with board.acquire_lock("a", "w1", timeout=0):
                pytest.fail("two were inside")


async def test_a_lock_is_freed_when_the_work_inside_fails(board: Blackboard, other: Blackboard) -> None:
    with pytest.raises(ZeroDivisionError):
        async with board.acquire_lock("a", "w1"):
            raise ZeroDivisionError

    async with other.acquire_lock("a", "w2", timeout=0):
        pass


async def test_the_lock_of_a_dead_holder_is_free_after_its_lease(board: Blackboard, other: Blackboard) -> None:
    dead = board.acquire_lock("a", "dead", lease_s=30)
    await dead.__aenter__()
    assert dead.claim is not None
    (await locks_of(board)).leases.drop(dead.claim)  # it renews no more
    with pytest.raises(LockNotAcquiredError):
        await other.acquire_lock("a", "w2", timeout=0).__aenter__()

    await clock_of(await locks_of(board)).advance(s=30)

    async with other.acquire_lock("a", "w2", timeout=0) as lock:
        assert lock.claim is not None
        assert lock.claim.token > dead.claim.token, "its token fences the dead one out"
        assert not dead.held
        with pytest.raises(ClaimLostError):
            await dead.__aexit__(None, None, None)
        assert lock.held
        with pytest.raises(LockNotAcquiredError):
            await board.acquire_lock("a", "w3", timeout=0).__aenter__()


async def test_a_lock_never_wears_out(board: Blackboard, other: Blackboard) -> None:
    for n in range(12):
        lock = board.acquire_lock("a", f"w{n}", timeout=0)
        await lock.__aenter__()
        assert lock.claim is not None
        (await locks_of(board)).leases.drop(lock.claim)
        await clock_of(await locks_of(board)).advance(s=31)


async def test_a_lock_is_kept_for_as_long_as_its_holder_lives(board: Blackboard, other: Blackboard) -> None:
    async with board.acquire_lock("a", "w1", lease_s=0.4) as lock:
        assert lock.claim is not None
        ends_at_ms = lock.claim.ends_at_ms

        async def has_outlived_it() -> bool:
            assert lock.held
            desk = await locks_of(board)
            ends = await desk.store.command("ZSCORE", desk.keys.lane("locks/free/").timed, "a")
            return int(ends) > ends_at_ms + 400

        await until(has_outlived_it)


async def test_only_the_holder_extends_a_lock_and_never_makes_it_shorter(board: Blackboard, other: Blackboard) -> None:
    desk = await locks_of(board)
    await given_item(board, "not a lock".replace(" ", "_"))

    async def ends_at_ms() -> int:
        return int(await desk.store.command("ZSCORE", desk.keys.lane("locks/free/").timed, "a"))

    async with board.acquire_lock("a", "w1", lease_s=30) as lock:
        at_first = await ends_at_ms()
        assert await board.extend_lock(lock, 600) is True
        extended = await ends_at_ms()
        assert 569_000 <= extended - at_first <= 575_000
        assert await lock.extend(1) is True
        assert await ends_at_ms() == extended
        stranger = other.acquire_lock("a", "w2", timeout=0)
        assert await other.extend_lock(stranger, 600) is False
        assert await ends_at_ms() == extended
    assert await board.extend_lock(lock, 600) is False


async def test_a_lock_that_was_lost_meanwhile_says_so_at_the_end(board: Blackboard, other: Blackboard) -> None:
    lock = board.acquire_lock("a", "w1", lease_s=30)
    with pytest.raises(ClaimLostError):
        async with lock:
            await clock_of(await locks_of(board)).advance(s=31)
            assert await lock.extend(60) is False
    with pytest.raises(ZeroDivisionError):  # the error of the work is worth more
        async with lock:
            await clock_of(await locks_of(board)).advance(s=31)
            raise ZeroDivisionError


async def test_who_gives_up_waiting_leaves_no_lock_behind(board: Blackboard, other: Blackboard) -> None:
    desk = await locks_of(board)
    async with held_call(board.store, "claim_item") as (executed, let):
        entering = asyncio.create_task(board.acquire_lock("a", "w1").__aenter__())
        await in_time(executed.wait())
        entering.cancel()
        await asyncio.gather(entering, return_exceptions=True)
        let.set()

        async def is_free() -> bool:
            return (await desk.get("a")).holder == ""

        await until(is_free)


async def test_a_lock_can_be_used_again_by_the_next(board: Blackboard, other: Blackboard) -> None:
    tokens = []
    for n in range(5):
        async with (board, other)[n % 2].acquire_lock("a", f"w{n}", timeout=0) as lock:
            assert lock.claim is not None
            tokens.append(lock.claim.token)

    assert tokens == sorted(set(tokens))


@pytest.mark.parametrize(
    "bad",
    [
        {"resource": "a b"}, {"resource": ""}, {"agent_id": "a|b"}, {"timeout": -1}, {"timeout": float("nan")},
        {"lease_s": 0}, {"lease_s": -1}, {"lease_s": float("nan")}, {"lease_s": float("inf")},
    ],
    ids=str,
)  # fmt: skip
async def test_a_lock_with_bad_input_is_refused(board: Blackboard, bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        board.acquire_lock(**({"resource": "a", "agent_id": "w"} | bad))


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
async def test_a_lock_is_not_extended_by_nonsense(board: Blackboard, other: Blackboard, seconds: float) -> None:
    async with board.acquire_lock("a", "w1") as lock:
        with pytest.raises(InvalidInputError):
            await lock.extend(seconds)


async def test_a_lock_that_cannot_be_freed_for_want_of_redis_is_free_after_its_lease(
    board: Blackboard, other: Blackboard
) -> None:
    original = board.store.call

    async def call(function: str, *args: Any, **options: Any) -> Any:
        if function == "end_claims":
            raise StoreUnavailableError("here", "it is gone")
        return await original(function, *args, **options)

    lock: Lock = board.acquire_lock("a", "w1")
    with pytest.raises(StoreUnavailableError):
        async with lock:
            board.store.call = call  # type: ignore[method-assign]
    board.store.call = original  # type: ignore[method-assign]

    assert (await locks_of(board)).leases.kept == 0
    await clock_of(await locks_of(board)).advance(s=31)
    async with other.acquire_lock("a", "w2", timeout=0):
        pass
