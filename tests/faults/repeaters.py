"""A process that sends calls given to it, at the same moment as its likes: one call, delivered several times.

It takes jobs from its list in the ledger's Redis, waits for the moment that a job names, calls the board, and writes the
answers down.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import pickle
import time
from pathlib import Path

from ledger import Ledger

from swarm_infrastructure.store import Store


async def repeat(ledger: Ledger, url: str) -> None:
    own = f"jobs:{os.getpid()}"
    async with Store(url) as store:
        ledger.write("up", parent=os.getppid())
        while True:
            found = await asyncio.to_thread(ledger.redis.blpop, [own], 1)
            if found is None:
                continue
            job = pickle.loads(found[1])
            if job is None:
                return
            number, at, function, keys, args, times = job
            await asyncio.sleep(max(0.0, at - time.time()))
            answers = await asyncio.gather(*(store.call(function, keys, args) for _ in range(times)))
            ledger.redis.rpush(f"answers:{number}", *(pickle.dumps(answer) for answer in answers))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ledger", type=Path, required=True)
    asyncio.run(repeat(Ledger(parser.parse_args().ledger), os.environ["REDIS_URL"]))


if __name__ == "__main__":
    main()
