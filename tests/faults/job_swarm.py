"""The swarm that the fault tests hurt: a script of its own, whose handlers do what an item's payload says.

``{"do": "sleep", "s": 0.1}``     work for so long; ``"once_crashed_s"`` instead if its lease ended ``"crashes"`` times
``{"do": "block", "s": 0.1}``     the same, and the whole process stands still meanwhile
``{"do": "ask", "s": 0.1}``       ask a model after so long; it is this process's own and writes down each call
``{"do": "all"}``                 a durable step, a checkpoint and a question to the model, written down one by one
``{"do": "raise"}``               a handler that fails; ``"memory"`` and ``"recurse"`` for errors of other kinds
``{"do": "exit"}``                a handler that takes its process with it
``{"do": "hang"}``                a handler that never gives its process free
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from pathlib import Path
from typing import Any

import crash_points
from ledger import Ledger

from swarm_infrastructure import BaseAgent, Board, Claims, Item, RetryPolicy, Section, Swarm, Work, job_board
from swarm_infrastructure.agents import Outcome
from swarm_infrastructure.blackboard.claims import ClaimDesk, Ending
from swarm_infrastructure.errors import ClaimLostError
from swarm_infrastructure.llm import LLMRequest
from swarm_infrastructure.store import connections
from swarm_infrastructure.testing.fake_llm import FunctionLLM

# jobs outlive any number of killed workers; frail ones have the limits that a section has by default
BOARD: Board = job_board("faults", "jobs", max_attempts=0, max_crashes=0).with_sections(
    frail=Section(ready={"waiting": "active"}, resting=("done",), then={"active": "frail/done"})
)
BATCH = 4
MODEL = "stub-1"


class Hand(BaseAgent):
    """Does what it is told, and writes down that it did."""

    claims = Claims("jobs", "frail", batch=BATCH)
    retry = RetryPolicy(base_delay=0.05, max_delay=0.1)
    ledger: Ledger

    async def setup(self) -> None:
        self.ledger.write("up", agent=self.agent_id, parent=os.getppid())

    async def process(self, item: Item, work: Work) -> Outcome:
        told, facts = item.payload, {"item": item.id, "token": work.claim.token, "agent": self.agent_id}
        self.ledger.write("start", attempts=item.attempts, crashes=item.crashes, **facts)
        seconds = told.get("s", 0.0)
        if item.crashes and item.crashes >= told.get("crashes", 1):
            seconds = told.get("once_crashed_s", seconds)
        try:
            await self.do(told["do"], seconds, item, work)
        except asyncio.CancelledError:
            self.ledger.write("cancelled", why=work.lost, **facts)
            raise
        self.ledger.write("end", **facts)
        return work.done({"agent": self.agent_id})

    async def do(self, what: str, seconds: float, item: Item, work: Work) -> None:
        match what:
            case "sleep":
                await asyncio.sleep(seconds)
            case "block":
                time.sleep(seconds)
            case "ask":
                await asyncio.sleep(seconds)
                await work.ask("content_analysis", item.id, model=MODEL)
            case "all":
                await self.do_all(item, work)
            case "raise":
                raise RuntimeError("told to fail")
            case "memory":
                raise MemoryError
            case "recurse":
                await self.do(what, seconds, item, work)
            case "exit":
                os._exit(1)
            case "hang":
                while True:
                    time.sleep(0.05)

    async def do_all(self, item: Item, work: Work) -> None:
        found = await work.resume()
        self.ledger.write(
            "resumed", item=item.id, stage=found.stage if found else "", token=found.token if found else 0
        )
        await work.step("effect", self.effect, item.id)
        await work.checkpoint("effect_done", {"item": item.id, "filling": "x" * 20_000})
        await work.ask("content_analysis", item.id, model=MODEL)

    async def effect(self, item_id: str, *, idempotency_key: str) -> dict[str, str]:
        self.ledger.write("effect", item=item_id, key=idempotency_key)
        return {"of": item_id}


def record_endings(ledger: Ledger) -> None:
    """Write down what the board answers when a claim ends."""
    end = ClaimDesk.end

    async def recorded(desk: ClaimDesk, ending: Ending) -> Any:
        facts = {"item": ending.claim.item_id, "token": ending.claim.token, "agent": ending.claim.agent_id}
        try:
            kind, version = await end(desk, ending)
        except ClaimLostError as error:
            ledger.write("refused", why=error.why, asked=ending.kind, **facts)
            raise
        ledger.write("accepted", kind=kind, version=version, **facts)
        return kind, version

    ClaimDesk.end = recorded  # type: ignore[method-assign]


def use_next_library() -> None:
    """Work with the functions of the next version, as a process of the next release does."""
    from next_library import PREFIX, next_library

    library = next_library()
    connections.PREFIX = PREFIX
    connections.shipped = lambda: library


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--slots", type=int, default=BATCH)
    parser.add_argument("--agents", type=int, default=1)
    parser.add_argument("--next-library", action="store_true")
    options = parser.parse_args()
    ledger = Hand.ledger = Ledger(options.ledger)
    Hand.slots, Hand.claims = options.slots, Claims("jobs", "frail", batch=min(options.slots, 50))
    record_endings(ledger)
    crash_points.install(ledger)
    if options.next_library:
        use_next_library()

    def answer(request: LLMRequest) -> str:
        ledger.write("model", item=request.prompt, key=request.idempotency_key)
        return "an answer"

    Swarm([Hand] * options.agents, board=BOARD, llm=FunctionLLM(answer)).run(processes=options.processes)


if __name__ == "__main__":
    main()
