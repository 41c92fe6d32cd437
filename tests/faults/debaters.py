"""A process that takes part in a debate; steered by lines on its standard input, answers with lines of JSON.

    python debaters.py URL NAMESPACE moderate DEBATE ITEM VOTER...
    python debaters.py URL NAMESPACE debate AGENT CHOICE

A moderator opens the debate, says so, and waits to be killed. A debater looks for what it may vote on, argues, says that
it is ``ready``, and votes when it reads a line: several times at once, as one whose replies were lost.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from swarm_infrastructure.consensus import Debates
from swarm_infrastructure.keys import BoardKeys
from swarm_infrastructure.store import Store

BOARD = "jobs"
DEADLINE_S = 600.0  # far away: a test that needs it moves the board's clock
TIMES = 5  # that a debater sends its vote


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


async def hear() -> str:
    return await asyncio.to_thread(sys.stdin.readline)


async def moderate(debates: Debates, debate_id: str, item_id: str, *voters: str) -> None:
    debate = await debates.open(
        debate_id, "Is it news?", voters=voters, quorum=3, deadline_s=DEADLINE_S, item_id=item_id
    )
    say(opened=debate.id)
    await hear()


async def debate(debates: Debates, agent_id: str, choice: str) -> None:
    while not (found := await debates.open_debates(agent_id)):
        await asyncio.sleep(0.01)
    debate_id = found[0].id
    await debates.argue(debate_id, agent_id, choice, f"{agent_id} thinks so", 0.9)
    say(ready=agent_id)
    await hear()
    casts = await asyncio.gather(*(debates.vote(debate_id, agent_id, choice, 0.9) for _ in range(TIMES)))
    say(counted=[cast.counted for cast in casts], closed=sum(cast.closed for cast in casts))


async def run(url: str, namespace: str, what: str, *words: str) -> None:
    async with Store(url) as store:
        debates = Debates(store, BoardKeys(namespace, BOARD))
        await {"moderate": moderate, "debate": debate}[what](debates, *words)


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
