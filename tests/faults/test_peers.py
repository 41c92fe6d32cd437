"""Six faults as they were done to other queues: two workers of four slots, the same items, the same leases.

What the others did is in ``table.py``. Long form only: with leases of 15 s each takes its time.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from arena import LONG, PATIENCE_S, SEED, SLACK_S, Arena, Process
from lab import until

from swarm_infrastructure.store import Store

pytestmark = [pytest.mark.timeout(600), pytest.mark.skipif(not LONG, reason="long form only: make faults")]
Start = Callable[[float], AbstractAsyncContextManager[Arena]]


@pytest.fixture
def with_lease(request: pytest.FixtureRequest, tmp_path: Path) -> Start:
    return lambda lease_s: Arena(request.config.getoption("--redis-kind"), tmp_path, lease_s=lease_s)


async def two_at_work(
    arena: Arena, n: int, seconds: float, once_crashed_s: float | None = None
) -> tuple[Process, Process, list[str]]:
    grace = {"SWARM_SHUTDOWN_GRACE_S": "25"}
    first, second = await arena.start(1, **grace), await arena.start(1, **grace)
    again_s = seconds if once_crashed_s is None else once_crashed_s
    ids = await arena.submit(*({"do": "sleep", "s": seconds, "once_crashed_s": again_s} for _ in range(n)))
    await until(lambda: len(_of(arena, first)) >= 4 and len(_of(arena, second)) >= 4, "both at work")
    return first, second, ids


def _of(arena: Arena, process: Process) -> set[str]:
    return {line["item"] for line in arena.ledger.lines("start") if line["pid"] == process.pid}


@pytest.mark.parametrize(("n", "seconds", "column"), [(40, 1.0, "backlog"), (8, 4.0, "quiet")])
async def test_a_busy_worker_is_killed(with_lease: Start, n: int, seconds: float, column: str) -> None:
    async with with_lease(15.0) as arena:
        victim, _, ids = await two_at_work(arena, n, seconds)
        ended = {line["item"] for line in arena.ledger.lines("accepted")}
        held = _of(arena, victim) - ended
        victim.kill()
        killed_at = time.time()
        await until(lambda: arena.done(ids), "all items done", within_s=PATIENCE_S * 2)
        again = [
            x["at"] - killed_at for x in arena.ledger.lines("start") if x["item"] in held and x["pid"] != victim.pid
        ]
        await arena.account(ids)
        assert len(again) == len(held)
        assert max(again) <= 15.0 + SLACK_S, f"{again} (seed {SEED})"
        arena.report(f"peers: {column}", fault="F1", **arena.tally(ids), recovery_max_s=round(max(again), 1))


async def test_a_worker_is_told_to_stop(with_lease: Start) -> None:
    async with with_lease(30.0) as arena:
        leaving, _, ids = await two_at_work(arena, 24, 3.0)
        leaving.send_signal(signal.SIGTERM)
        told_at = time.time()
        await asyncio.to_thread(leaving.wait, PATIENCE_S)
        exit_s = time.time() - told_at
        await until(lambda: arena.done(ids), "all items done")
        await arena.account(ids)
        tally = arena.tally(ids)
        assert tally["run_twice"] == 0
        arena.report("peers: SIGTERM", fault="F4", **tally, exit_s=round(exit_s, 1))


async def test_redis_is_killed_and_comes_back_after_two_seconds(with_lease: Start) -> None:
    async with with_lease(15.0) as arena:
        _, _, ids = await two_at_work(arena, 400, 0.05)
        await until(lambda: len(arena.ledger.lines("accepted")) > 100, "the middle of the work")
        arena.server.kill()
        killed_at = time.time()
        await asyncio.sleep(2.0)
        arena.server.restart()
        await until(lambda: arena.done(ids), "all items done")
        first_s = min(x["at"] for x in arena.ledger.lines("start") if x["at"] > killed_at + 2.0) - killed_at
        await arena.account(ids)
        arena.report("peers: Redis", fault="F5", **arena.tally(ids), first_work_s=round(first_s, 1))


async def test_connections_are_killed_for_six_seconds(with_lease: Start) -> None:
    async with with_lease(15.0) as arena:
        _, _, ids = await two_at_work(arena, 400, 0.05)
        async with Store(arena.server.url) as admin:
            for _ in range(12):
                await admin.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await admin.command("CLIENT", "KILL", "TYPE", "pubsub")
                await asyncio.sleep(0.5)
        await until(lambda: arena.done(ids), "all items done")
        await arena.account(ids)
        tally = arena.tally(ids)
        assert tally["run_twice"] == 0
        arena.report("peers: connections", fault="F7", **tally)


async def test_a_worker_is_frozen_for_three_leases(with_lease: Start) -> None:
    async with with_lease(6.0) as arena:
        frozen, _, ids = await two_at_work(arena, 8, 3.0)
        frozen.send_signal(signal.SIGSTOP)
        await asyncio.sleep(18.0)
        frozen.send_signal(signal.SIGCONT)
        await until(lambda: arena.done(ids), "all items done")
        await arena.account(ids)
        accepted = [line for line in arena.ledger.lines("accepted") if line["kind"] == "completed"]
        assert len(accepted) == len(ids)
        arena.report("peers: frozen", fault="F3", **arena.tally(ids), accepted=len(accepted))
