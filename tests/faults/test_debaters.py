"""A debate among real processes: the moderator is killed, a debater is killed, one is slow; there is an outcome all the same."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from debaters import BOARD, TIMES
from lab import HERE, PATIENCE_S, ROOT

from swarm_infrastructure.consensus import DebateOutcome, Debates, audit_debates
from swarm_infrastructure.keys import BoardKeys
from swarm_infrastructure.store import Store

pytestmark = pytest.mark.any_server

VOTERS = [f"debater_{n}" for n in range(1, 6)]
Start = Callable[..., Awaitable[Process]]


@pytest.fixture
def keys() -> BoardKeys:
    return BoardKeys("d" + secrets.token_hex(5), BOARD)


@pytest.fixture
async def start(store: Store, keys: BoardKeys) -> AsyncIterator[Start]:
    """Starts processes that do not outlive the test."""
    started: list[Process] = []

    async def start(*words: str) -> Process:
        namespace = keys.prefix.partition("{")[2].partition(":")[0]
        command = [sys.executable, str(HERE / "debaters.py"), store.url, namespace, *words]
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}"}
        started.append(
            await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment)
        )
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def told(process: Process) -> dict[str, Any]:
    """The next thing that it says."""
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)
    assert line, "it ended without a word"
    found: dict[str, Any] = json.loads(line)
    return found


async def votes(process: Process) -> dict[str, Any]:
    """Let it vote; what became of that."""
    assert process.stdin is not None
    process.stdin.write(b"vote\n")
    await process.stdin.drain()
    return await told(process)


async def given_debaters(start: Start, choices: list[str]) -> dict[str, Process]:
    """A debate whose moderator is dead, and five debaters who have argued and are about to vote."""
    moderator = await start("moderate", "news_1:1", "news_1", *VOTERS)
    assert await told(moderator) == {"opened": "news_1:1"}
    moderator.kill()
    await moderator.wait()
    debaters = [await start("debate", agent, choice) for agent, choice in zip(VOTERS, choices, strict=True)]
    for agent, process in zip(VOTERS, debaters, strict=True):
        assert await told(process) == {"ready": agent}
    return dict(zip(VOTERS, debaters, strict=True))


async def test_one_of_five_is_killed_and_one_is_slow_and_the_outcome_comes_before_the_deadline(
    store: Store, keys: BoardKeys, start: Start
) -> None:
    debates = Debates(store, keys)
    killed, slow, *others = (await given_debaters(start, ["reject", "reject", *["publish"] * 3])).values()
    killed.kill()
    await killed.wait()
    waiting = asyncio.create_task(debates.wait("news_1:1"))

    answers = await asyncio.gather(*map(votes, others))
    verdict = await asyncio.wait_for(waiting, PATIENCE_S)
    late = await votes(slow)

    debate = await debates.get("news_1:1")
    assert (verdict.outcome, verdict.position, verdict.how) == (DebateOutcome.CONSENSUS, "publish", "certain")
    assert verdict.decided_ms < debate.deadline_ms
    assert [answer["counted"] for answer in answers] == [[True] * TIMES] * 3
    assert sum(answer["closed"] for answer in answers) == 1, "one call learned that it closed the debate"
    assert late == {"counted": [False] * TIMES, "closed": 0}
    assert sorted(vote.agent_id for vote in await debates.votes("news_1:1")) == VOTERS[2:]
    assert (verdict.votes, debate.votes, len(await debates.arguments("news_1:1"))) == (3, 3, 5)
    assert debate.verdict == verdict
    assert await audit_debates(store, keys) == []


async def test_where_the_missing_votes_could_change_it_the_outcome_comes_at_the_deadline(
    store: Store, keys: BoardKeys, start: Start
) -> None:
    debates = Debates(store, keys)
    killed, slow, *others = (
        await given_debaters(start, ["reject", "publish", "publish", "publish", "reject"])
    ).values()
    killed.kill()
    await killed.wait()
    waiting = asyncio.create_task(debates.wait("news_1:1"))
    await asyncio.gather(*map(votes, others))
    assert (await debates.get("news_1:1")).is_open, "one rejects, and two votes are out"

    await store.command("HINCRBY", keys.rules, "clock_offset_ms", 600_000)
    late = await votes(slow)
    verdict = await asyncio.wait_for(waiting, PATIENCE_S)

    assert late["counted"] == [False] * TIMES
    assert (verdict.outcome, verdict.position, verdict.how) == (DebateOutcome.CONSENSUS, "publish", "deadline")
    assert (verdict.votes, verdict.decided_ms) == (3, (await debates.get("news_1:1")).deadline_ms)
    assert await audit_debates(store, keys) == []
