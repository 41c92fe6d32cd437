"""The news swarm in three processes, whose workers are killed while they publish: each story comes out once (F1)."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from arena import ROUNDS, SEED, SLACK_S, Arena, late_offers, spread
from lab import ROOT, until

from swarm_infrastructure import Blackboard

pytestmark = [pytest.mark.timeout(1800), pytest.mark.any_server]
NEWS_ROUNDS = ROUNDS // 2 if ROUNDS < 20 else ROUNDS  # a round takes half a minute
NEWS_LEASE_S = 4.0  # the news swarm computes: on a busy machine its loop may stand still for half a second


def news_lines(n: int, seed: int) -> str:
    """*n* articles that are news and unlike each other."""
    chance = random.Random(seed)
    towns = [
        f"{a}{b}"
        for a in ("Har", "Mill", "Oak", "Stone", "Low", "Brack", "Elm")
        for b in ("ford", "bury", "wick", "combe")
    ]
    things = [
        "bridge",
        "library",
        "ferry",
        "market hall",
        "tram line",
        "sea wall",
        "reservoir",
        "museum",
        "bakery",
        "mill",
    ]
    verbs = ["reopened", "closed", "was sold", "was repaired", "was painted", "was moved", "was flooded", "was praised"]
    lines = []
    for i in range(n):
        words = [
            "".join(chance.choices("bcdfglmnprst", k=1) + chance.choices("aeiou", k=1)) * 2 + str(i % 7)
            for _ in range(30)
        ]
        town, thing, verb = chance.choice(towns), chance.choice(things), chance.choice(verbs)
        text = (
            f"The {thing} of {town} {verb} on Monday after {chance.randrange(2, 90)} days of work by the council. "
            f"Residents of {' and '.join(chance.sample(towns, 3))} said that {' '.join(words[:12])} would help them a lot. "
            f"The cost was {chance.randrange(100, 9999)} thousand, which {' '.join(words[12:22])} had been promised last year. "
            f"A second {chance.choice(things)} will be built near {' '.join(words[22:])} before the winter comes."
        )
        title = f"{thing} of {town} {verb} ({i})"
        lines.append(json.dumps({"title": title, "content": text, "source": {"name": f"Paper {i % 9}"}}))
    return "\n".join(lines)


async def drive_news(arena: Arena, feed: Path, read: int) -> list[float]:
    """Run the news swarm in three processes, again and again, and kill one of its workers each time."""
    recoveries = []
    for n in range(NEWS_ROUNDS):
        out, summary = arena.folder / f"out{n}", arena.folder / f"summary{n}.json"
        words = [sys.executable, str(ROOT / "examples/news_swarm/main.py"), str(feed), "--processes", "3"]
        namespace = f"{arena.namespace}n{n}"
        words += ["--out", str(out), "--summary", str(summary)]
        environment = arena.environment | {"SWARM_ID": namespace, "SWARM_LEASE_S": str(NEWS_LEASE_S)}
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        arena.processes.append(process)
        await until(lambda out=out: out.is_dir() and any(out.iterdir()), "the first story")
        await asyncio.sleep(arena.random.uniform(0, 1.0))
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        workers = [pid for pid in children if b"main.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(arena.random.choice(workers), signal.SIGKILL)
        killed_at = time.time()
        _, errors = await asyncio.to_thread(process.communicate, None, 120)
        assert process.returncode == 0, errors.decode()

        told = json.loads(summary.read_text())
        assert told["read"] == read
        assert told["published"] + told["duplicates"] + told["rejected"] + told["failed"] == read
        assert told["failed"] == 0
        assert sorted(folder.name[-8:] for folder in out.iterdir()) == sorted(i[-8:] for i in told["ids"]["published"])
        async with Blackboard(
            arena.store, (await _news_board()).with_lease(NEWS_LEASE_S), namespace=namespace
        ) as board:
            histories = {each: await board.history(each) for each in told["ids"]["published"]}
            for each, events in histories.items():
                kinds = [event.kind for event in events if event.after == "published/published/"]
                assert kinds == ["completed"], f"{each}: {kinds} (seed {SEED})"
            await arena.check(board)
        recoveries += late_offers(histories, killed_at)
    assert all(s <= NEWS_LEASE_S + SLACK_S for s in recoveries), f"{recoveries} (seed {SEED})"
    return recoveries


async def _news_board() -> Any:
    from examples.news_swarm.board import BOARD as NEWS_SWARM

    return NEWS_SWARM


async def test_the_news_swarm_publishes_each_story_once_though_its_workers_are_killed(arena: Arena) -> None:
    feed = arena.folder / "feed.jsonl"
    feed.write_text(news_lines(150, SEED))
    recoveries = await drive_news(arena, feed, 150)
    arena.report(
        "news swarm, kill -9 a worker", fault="F1", n=150 * NEWS_ROUNDS, lost=0, accepted_twice=0, reoffered=len(recoveries),
        lease_s=NEWS_LEASE_S, rounds=NEWS_ROUNDS, **spread(recoveries),
    )  # fmt: skip


async def test_real_articles_are_all_accounted_for_though_workers_are_killed(arena: Arena) -> None:
    feed = ROOT.parent / "shared" / "data" / "newsapi_articles.json"
    if not feed.exists():
        pytest.skip("newsapi_articles.json is not beside this checkout")
    recoveries = await drive_news(arena, feed, 460)
    arena.report(
        "real news, kill -9 a worker", fault="F1", n=460 * NEWS_ROUNDS, lost=0, accepted_twice=0, reoffered=len(recoveries),
        lease_s=NEWS_LEASE_S, rounds=NEWS_ROUNDS, **spread(recoveries),
    )  # fmt: skip
