"""Writers of checkpoints that are killed at any moment (F22), and a backend that fails for a fleet of processes (F21)."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator

import pytest
from arena import LONG, SEED, Arena
from breaker_callers import RULES
from checkpoint_writer import STAGE, TASK, data_of
from lab import until
from nursery import Nursery

from swarm_infrastructure.failure_recovery import Breakers, Checkpoints

pytestmark = [pytest.mark.timeout(1800), pytest.mark.any_server]
KILLS = 1000 if LONG else 25
CALLERS = 16
DOWN_S = 10.0 if LONG else 3.0


@pytest.fixture
def writers() -> Iterator[Nursery]:
    nursery = Nursery("checkpoint_writer")
    yield nursery
    nursery.close()


@pytest.fixture
def callers() -> Iterator[Nursery]:
    nursery = Nursery("breaker_callers")
    yield nursery
    nursery.close()


async def test_a_checkpoint_is_the_old_or_the_new_one_whenever_its_writer_is_killed(
    writers: Nursery, arena: Arena
) -> None:
    checkpoints, old, new, last = Checkpoints(arena.board), 0, 0, 0
    for _ in range(KILLS):
        ups = len(arena.ledger.lines("up"))
        writer = writers.start(("--ledger", str(arena.ledger.path)), arena.environment)
        arena.processes.append(writer)
        await until(lambda ups=ups: len(arena.ledger.lines("up")) > ups, "the writer")
        await asyncio.sleep(arena.random.uniform(0, 0.01))
        writer.kill()
        await asyncio.to_thread(writer.wait, 10)
        asked, answered = (int(arena.ledger.redis.get(name) or 0) for name in ("asked", "answered"))
        found = await checkpoints.find(TASK)
        n = found.data["n"] if found else 0
        # one that was executed and not answered any more is there, or not; what was there or was answered does not go
        assert max(last, answered) <= n <= asked, (
            f"found {n} after {last}, answered {answered}, asked {asked} (seed {SEED})"
        )
        last = n
        assert not found or (found.stage, found.data) == (STAGE, data_of(n)), f"torn (seed {SEED})"
        old, new = old + (n < asked), new + (n == asked)
    await arena.check()
    arena.report("kill -9 a writer of checkpoints", fault="F22", n=KILLS, torn=0, stale=0, old=old, new=new)


async def test_a_failing_backend_is_called_by_probes_alone_and_by_all_once_it_is_well(
    callers: Nursery, arena: Arena
) -> None:
    arena.ledger.redis.set("works", 1)
    for _ in range(CALLERS):
        arena.processes.append(callers.start(("--ledger", str(arena.ledger.path)), arena.environment))
    await until(lambda: len(arena.ledger.lines("call")) > 10 * CALLERS, "calls of a backend that works")

    arena.ledger.redis.set("works", 0)
    failed_at = time.time()
    await asyncio.sleep(DOWN_S)
    arena.ledger.redis.set("works", 1)
    healed_at = time.time()
    breakers = Breakers(arena.store, arena.board.keys, RULES)

    async def closed() -> bool:
        return (await breakers.state("backend")).state == "closed"

    await until(closed, "the breaker closed")
    seen = len(arena.ledger.lines("call"))
    await until(lambda: len(arena.ledger.lines("call")) > seen + 10 * CALLERS, "calls of everybody")

    lines = arena.ledger.lines("call")
    broken = [line["began"] for line in lines if not line["works"]]
    windows = math.ceil((healed_at - failed_at) / RULES.recovery_timeout) + 1
    most = RULES.failure_threshold + CALLERS + windows * RULES.half_open_max_calls
    assert len(broken) <= most, f"{len(broken)} calls of a broken backend, needed at most {most} (seed {SEED})"
    # the breaker opens within the first moments; from then on probes alone pass, once in a recovery time
    probes = [at for at in broken if at > failed_at + RULES.recovery_timeout / 2]
    worst = max(sum(at <= each < at + RULES.recovery_timeout * 0.9 for each in probes) for at in probes)
    assert worst <= RULES.half_open_max_calls, f"{worst} probes within a window (seed {SEED})"
    first = min(line["began"] for line in lines if line["works"] and line["began"] > healed_at)
    assert first - healed_at <= RULES.recovery_timeout + 1.0, f"closed after {first - healed_at:.2f} s (seed {SEED})"
    arena.report(
        "a backend fails for 16 processes", fault="F21", n=len(lines), calls_while_down=len(broken), most=most,
        probes_per_window=worst, closed_after_s=round(first - healed_at, 3),
    )  # fmt: skip
