"""A worker that writes checkpoints of one task as fast as it can, and writes down each that was answered, until it is killed."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

from job_swarm import BOARD
from ledger import Ledger

from swarm_infrastructure import Blackboard
from swarm_infrastructure.failure_recovery import Checkpoints
from swarm_infrastructure.store import Store

TASK, STAGE = "video_001", "half"


def data_of(n: int) -> dict[str, object]:
    """What the *n*-th checkpoint holds: a torn one could not be consistent."""
    return {"n": n, "text": str(n % 10) * 40_000, "again": n}


async def write(ledger: Ledger) -> None:
    async with (
        Store(os.environ["REDIS_URL"]) as store,
        Blackboard(store, BOARD, namespace=os.environ["SWARM_ID"]) as board,
    ):
        checkpoints = Checkpoints(board)
        found = await checkpoints.find(TASK)
        n = found.data["n"] if found else 0
        ledger.write("up", parent=os.getppid(), found=n)
        while True:
            n += 1
            ledger.redis.set("asked", n)
            await checkpoints.create(TASK, STAGE, data_of(n))
            ledger.redis.set("answered", n)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ledger", type=Path, required=True)
    asyncio.run(write(Ledger(parser.parse_args().ledger)))


if __name__ == "__main__":
    main()
