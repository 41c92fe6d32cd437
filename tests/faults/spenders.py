"""Spenders that the fault tests hurt: many tasks that ask a model for answers until some budget has nothing left. They begin
with SIGUSR1.

``--stop-at after_begin|after_reserve|after_mark_sent|after_reply``: one call, which stands still there; SIGUSR1 lets it go
on, SIGTERM cancels it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

from ledger import Ledger

from swarm_infrastructure.cost_manager import CostManager, MeteredCall, Prices
from swarm_infrastructure.cost_manager.budgets import Spender
from swarm_infrastructure.errors import BudgetExceededError, ModelUnavailableError
from swarm_infrastructure.keys import BoardKeys
from swarm_infrastructure.llm import LLMRequest, OpenAIClient
from swarm_infrastructure.store import Store

MODEL = "stub-1"
PER_MTOK = 10  # dollars for a million tokens that the model writes; what it reads is free
NANO_PER_TOKEN = PER_MTOK * 1000
MOST_TOKENS, LEAST_TOKENS = 1200, 200  # 1.2 cents is what a call is reserved at, 0.2 the least that it costs
BOARD = "spending"
AGENTS, TASKS = 8, 32
HOLD_S = 60.0


def prices(folder: Path) -> Prices:
    """Those of the stub."""
    path = folder / "prices.toml"
    if not path.exists():
        path.write_text(f'["{MODEL}"]\ninput = 0\noutput = {Decimal(PER_MTOK)}\n')
    return Prices(path)


class Spending:
    """The spenders of one process."""

    def __init__(self, costs: CostManager, client: OpenAIClient, ledger: Ledger, stop_at: str) -> None:
        self.costs, self.client, self.ledger, self.stop_at = costs, client, ledger, stop_at
        self.go_on = asyncio.Event()

    async def spend(self, n: int) -> None:
        """Ask until some budget has nothing left; each call of another task."""
        spender = Spender(agent_id=f"agent_{n % AGENTS}", role="spender", tags=("lab",))
        while True:
            task = f"task_{random.randrange(TASKS)}"
            try:
                await self.call(Spender(spender.agent_id, spender.role, task, "fast", spender.tags))
            except BudgetExceededError as error:
                if error.scope in ("swarm", f"agent:{spender.agent_id}"):
                    return
            except ModelUnavailableError:  # it stood still for too long and sent nothing
                pass

    async def call(self, spender: Spender) -> None:
        call = await self.costs.begin(
            spender, MODEL, input_tokens=0, max_output_tokens=MOST_TOKENS, wait_s=0.5,
            hold_s=HOLD_S if self.stop_at == "after_begin" else None,
        )  # fmt: skip
        assert isinstance(call, MeteredCall)
        async with call:
            await self.at("after_begin", call.reservation.id)
            await self.at("after_reserve", call.reservation.id)
            await call.send(hold_s=HOLD_S)
            await self.at("after_mark_sent", call.reservation.id)
            request = LLMRequest(model=MODEL, prompt=call.reservation.id, max_output_tokens=MOST_TOKENS)
            result = await self.client.generate(request)
            await self.at("after_reply", call.reservation.id)
            await call.settle(result.usage)

    async def at(self, point: str, id: str) -> None:
        if point == self.stop_at:
            self.ledger.write("at", point=point, id=id)
            await self.go_on.wait()


async def run(options: argparse.Namespace) -> None:
    client = OpenAIClient("key", f"{options.model_url}/v1", timeout_s=60)
    async with Store(os.environ["REDIS_URL"]) as store:
        keys = BoardKeys(os.environ["SWARM_ID"], BOARD)
        costs = CostManager(store, keys, prices=prices(options.ledger.parent))
        spending = Spending(costs, client, Ledger(options.ledger), options.stop_at)
        loop, me = asyncio.get_running_loop(), asyncio.current_task()
        assert me is not None
        loop.add_signal_handler(signal.SIGTERM, me.cancel)
        loop.add_signal_handler(signal.SIGUSR1, spending.go_on.set)
        spending.ledger.write("up", parent=os.getppid())
        if options.stop_at:
            with suppress(BudgetExceededError, ModelUnavailableError, asyncio.CancelledError):
                await spending.call(Spender("agent_0", "spender", "task_0", "fast", ("lab",)))
        else:
            await spending.go_on.wait()
            await asyncio.gather(*(spending.spend(n) for n in range(options.tasks)))
    await client.aclose()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--model-url", required=True)
    parser.add_argument("--stop-at", default="")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
