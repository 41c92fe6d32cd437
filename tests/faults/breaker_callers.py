"""A worker that calls one backend through its breaker again and again; the backend's health stands in the ledger's Redis."""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from pathlib import Path

from job_swarm import BOARD
from ledger import Ledger

from swarm_infrastructure import Blackboard, CircuitBreakerConfig, CircuitOpenError
from swarm_infrastructure.failure_recovery import Breakers
from swarm_infrastructure.store import Store

RULES = CircuitBreakerConfig(failure_threshold=5, recovery_timeout=1.0, half_open_max_calls=3, probe_timeout=5.0)
CALL_S = 0.02


async def call_for_ever(ledger: Ledger) -> None:
    async with (
        Store(os.environ["REDIS_URL"]) as store,
        Blackboard(store, BOARD, namespace=os.environ["SWARM_ID"]) as board,
    ):
        breaker = Breakers(store, board.keys, RULES).get("backend")

        async def backend() -> None:
            began, works = time.time(), ledger.redis.get("works") == b"1"
            await asyncio.sleep(CALL_S)
            ledger.write("call", began=began, works=works)
            if not works:
                raise ConnectionError("down")

        ledger.write("up", parent=os.getppid())
        while True:
            try:
                await breaker.call(backend)
            except (CircuitOpenError, ConnectionError):
                await asyncio.sleep(CALL_S)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ledger", type=Path, required=True)
    asyncio.run(call_for_ever(Ledger(parser.parse_args().ledger)))


if __name__ == "__main__":
    main()
