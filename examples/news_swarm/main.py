"""The news swarm: turns news feeds into short scripts.

    python examples/news_swarm/main.py INPUT... --out DIR [--summary FILE] [--processes N]

INPUT: RSS or Atom, NewsAPI JSON or JSON lines; files, folders or http(s) URLs.
Exit code: 0 done, 1 nothing could be read, 2 wrong arguments, 3 wrong settings, 4 Redis does not answer, 6 some sources
or stories failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import orjson
from rich.console import Console

if __package__ in (None, ""):  # run as a script: make the examples importable, as `python -m` would
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.news_swarm import output
from examples.news_swarm.agents import Analyst, Contra, Neutral, Pro, Publisher, Reviewer, Scout, Writer
from examples.news_swarm.board import BOARD, SOURCES
from examples.news_swarm.engine import ENGINE_NOTE
from examples.news_swarm.models import choose_models
from examples.news_swarm.show import Display, show_summary
from examples.news_swarm.sources import expand
from examples.news_swarm.tally import Costs, Tally, unfinished
from swarm_infrastructure import (
    BaseAgent,
    Budget,
    ConfigurationError,
    Settings,
    Submission,
    Swarm,
    SwarmError,
    SwarmInfrastructure,
    UnavailableError,
)
from swarm_infrastructure.agents.supervisor import worker_seat
from swarm_infrastructure.errors import RefusedError

LOOK_EVERY_S = 0.2


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="news_swarm", description="Turn news feeds into short scripts.")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="a feed: file, folder or URL")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where each story gets a folder")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the account of the run there, as JSON")
    parser.add_argument(
        "--budget", type=float, metavar="DOLLARS", help="what the swarm may spend a day (default: no limit)"
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="worker processes (default 1)")
    return parser.parse_args(words)


def build_swarm(out: Path, *, budget: float | None = None) -> Swarm:
    """The agents on their board, with their models."""
    settings = Settings.load()
    agents: list[Callable[..., BaseAgent]] = [Scout, Pro, Contra, Neutral, Analyst, Writer, Reviewer]
    agents.append(partial(Publisher, out=out))
    models = choose_models(settings)._asdict()
    return Swarm(agents, board=BOARD, settings=settings, budget=Budget(daily_limit=budget), **models)


async def feed_and_watch(
    swarm: SwarmInfrastructure, *, locations: list[str], out: Path, console: Console
) -> tuple[Tally, float]:
    """Put the sources on the board, show how far the stories are, and account for them at the end."""
    started, run = time.monotonic(), secrets.token_hex(4)
    board = swarm.blackboard
    sources = [
        Submission(id=f"src_{run}_{n}", section=SOURCES, payload={"location": location, "run": run})
        for n, location in enumerate(locations)
    ]
    await board.submit(*sources, agent="main")
    source_ids = [source.id for source in sources]
    before = await Costs.take(swarm)
    with Display(console) as display:
        while True:
            try:
                display.update(await board.get_all_stats())
                display.tell_paused(await swarm.cost_manager.paused())
                if not await unfinished(board):
                    break
            except UnavailableError as error:
                console.print(f"waiting: {error}", style="yellow", highlight=False, markup=False)
            await asyncio.sleep(LOOK_EVERY_S)
    tally = await Tally.take(board, source_ids)
    for item_id in tally.published:  # once more, now that the last step and late near-copies are known
        item = tally.items[item_id]
        events = await board.history(item_id)
        cost = (await swarm.cost_manager.ledger.accounts(f"task:{item_id}"))["total"].settled
        await asyncio.to_thread(output.write_story, out, item, events, tally.copies_of(item_id), cost=cost)
    tally.costs = (await Costs.take(swarm)) - before
    return tally, time.monotonic() - started


def run(words: list[str] | None = None) -> int:
    """Run the swarm; returns the exit code."""
    options = parse_arguments(words)
    console = Console(highlight=False)
    try:
        locations = expand(options.inputs)
        options.out.mkdir(parents=True, exist_ok=True)
        if options.summary is not None:
            options.summary.parent.mkdir(parents=True, exist_ok=True)
        swarm = build_swarm(options.out, budget=options.budget)
        if worker_seat() is None and choose_models(swarm.settings).extractive:
            console.print(ENGINE_NOTE, soft_wrap=True)
        answer = swarm.run(
            processes=options.processes,
            watch=partial(feed_and_watch, locations=locations, out=options.out, console=console),
        )
    except (SwarmError, OSError) as error:
        print(f"news_swarm: {error}", file=sys.stderr)
        return _exit_code(error)
    if answer is None:
        print("news_swarm: stopped; run it again to go on where it stopped", file=sys.stderr)
        return 130
    tally, seconds = answer
    extractive = choose_models(swarm.settings).extractive
    show_summary(console, tally, seconds, str(options.out), extractive=extractive)
    if options.summary is not None:
        options.summary.write_bytes(orjson.dumps(tally.as_dict(seconds), option=orjson.OPT_INDENT_2))
    if tally.unread and len(tally.unread) == tally.sources:
        return 1
    return 6 if tally.unread or tally.failed else 0


def _exit_code(error: Exception) -> int:
    if isinstance(error, UnavailableError):
        return 4
    if isinstance(error, ConfigurationError):
        return 3
    return 2 if isinstance(error, RefusedError) else 1


if __name__ == "__main__":
    sys.exit(run())
