"""Many idle agents on a quiet board: what they cost, and how soon one of them works (F23)."""

from __future__ import annotations

import asyncio
import time

import pytest
from arena import LONG, SEED, Arena, spread
from lab import until
from proxy import Proxy

pytestmark = [pytest.mark.timeout(1800), pytest.mark.any_server]
PROCESSES, AGENTS = 5, 100
LEASE_S = 30.0  # the default: how often an idle process looks by itself follows from it
CLAIMS_PER_ITEM = 2


async def test_five_hundred_idle_agents_ask_at_most_twice_for_an_item(
    request: pytest.FixtureRequest, tmp_path: object
) -> None:
    async with Arena(request.config.getoption("--redis-kind"), tmp_path, lease_s=LEASE_S) as arena:  # type: ignore[arg-type]
        with Proxy(arena.server.socket) as proxy:
            for _ in range(PROCESSES):
                await arena.start(1, "--agents", str(AGENTS), REDIS_URL=proxy.url)
            await until(lambda: len(arena.ledger.lines("up")) == PROCESSES * AGENTS, "every agent")
            await asyncio.sleep(1.0)  # until they have all found nothing
            waits, ids = list[float](), list[str]()
            before, began = proxy.calls["claim"], time.monotonic()
            for _ in range(60 if LONG else 6):
                [each] = await arena.submit({"do": "sleep", "s": 0})
                at = time.time()
                ids.append(each)
                await asyncio.sleep(1.0)
                [begun] = [line["at"] for line in arena.ledger.lines("start") if line["item"] == each]
                waits.append(begun - at)
            claims, seconds = proxy.calls["claim"] - before, time.monotonic() - began
            polls = PROCESSES * seconds / (5.0 * 0.75)  # they look by themselves every 3.75 to 5 s
            # the one that is woken claims, and asks again when its hands are empty; the rest sleep on
            assert claims <= CLAIMS_PER_ITEM * len(ids) + polls, f"{claims} for {len(ids)} (seed {SEED})"
        await arena.account(ids)
        arena.report(
            "500 idle agents, 1 item a second", fault="F23", **arena.tally(ids), claim_calls=claims, of_which_polls=round(polls),
            **spread(waits),
        )  # fmt: skip
