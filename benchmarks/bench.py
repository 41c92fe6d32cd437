"""Measures the runtime as users have it: leases, events, validation and priorities on.

    python benchmarks/bench.py [--kind redis|valkey] [--reps 3] [--out benchmarks/results/bench.json] [--quick]

=============  ===================================================================================================
batches        one worker process, one agent that claims up to 100: claim → no-op → complete, cycles per second
agents         one worker process, 50 agents that claim one item each
behind 10 k    batches, with 10,000 items waiting before and behind those that are measured; also with 1,000,000
enqueue        items per second: one at a time, in batches of 500
latency        submit → handler starts, on an idle worker
money          reserve + settle pairs per second of one process, 50 callers at once and one alone; a whole model call
bus            one message to 50 agents; messages into a topic and through a processor; a worker that waits for a task
bytes          Redis' memory per waiting item with a 300-byte payload, and per completed one with its events
=============  ===================================================================================================

A fresh server without persistence for each repetition; the worker is a process of its own; medians of the repetitions.
Rates swing with what else a machine does: compare ratios within one run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bus import bus
from swarm_infrastructure import (
    AgentBudget,
    BaseAgent,
    Blackboard,
    Budget,
    Claims,
    CostManager,
    Item,
    Outcome,
    Settings,
    Spender,
    Submission,
    Swarm,
    TokenUsage,
    Work,
    job_board,
)
from swarm_infrastructure.cost_manager import MeteredCall, Pace
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import RedisServer, available_servers

BOARD = job_board("bench")
PAYLOAD = {"kind": "finding", "section": "research", "body": "x" * 250}  # 300 bytes as JSON
HERE = Path(__file__).resolve()
WARM = 2_000  # cycles before the clock starts


class NoOp(BaseAgent):
    """Does nothing, which leaves the runtime's own cost."""

    role = "noop"

    async def process(self, item: Item, work: Work) -> Outcome:
        return work.done()


class Stamp(BaseAgent):
    """Says when it began."""

    role = "stamp"
    claims = Claims("jobs")

    async def process(self, item: Item, work: Work) -> Outcome:
        return work.done({"began_ns": time.monotonic_ns()})


def work(mode: str) -> None:
    """A worker process: runs until it is ended."""
    if mode == "batches":
        NoOp.claims = Claims("jobs", batch=100)
        NoOp.slots = 200
    else:
        NoOp.claims = Claims("jobs")
    agents = {"batches": [NoOp], "agents": [NoOp] * 50, "stamp": [Stamp]}[mode]
    Swarm(agents, board=BOARD, settings=Settings.load()).run()


class Bench:
    """One fresh server, and a board on it."""

    def __init__(self, kind: str) -> None:
        self.server = RedisServer(kind)

    async def __aenter__(self) -> Bench:
        self.server.start()
        self.store = await Store(self.server.url).__aenter__()
        self.board = await Blackboard(self.store, BOARD).__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.board.__aexit__(None, None, None)
        await self.store.close()
        self.server.stop()

    async def fill(self, n: int, first: int = 0) -> float:
        """Submit *n* items in batches of 500; returns items per second."""
        started = time.perf_counter()
        for start in range(0, n, 5000):
            await self.board.submit(
                *(
                    Submission(id=f"i{first + i:08d}", section="jobs", payload=PAYLOAD)
                    for i in range(start, min(start + 5000, n))
                )
            )
        return n / (time.perf_counter() - started)

    async def done(self) -> int:
        """Items completed so far."""
        return int(await self.store.command("HGET", self.board.keys.counts, "jobs/done/") or 0)

    async def redis_us(self) -> float:
        """Microseconds that Redis spent in functions so far."""
        stats = await self.store.command("INFO", "commandstats")
        return float(stats.get("cmdstat_fcall", {"usec": 0})["usec"])

    async def memory(self) -> int:
        """Bytes that Redis uses."""
        return int((await self.store.info())["used_memory"])

    def start_worker(self, mode: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {"REDIS_URL": self.server.url, "SWARM_LOG_LEVEL": "ERROR"}
        return subprocess.Popen([sys.executable, str(HERE), "--work", mode], env=environment, stderr=subprocess.DEVNULL)

    async def drain(self, mode: str, cycles: int) -> dict[str, float]:
        """Let one worker process complete *cycles* items; at least that many must be waiting."""
        worker = self.start_worker(mode)
        try:
            while await self.done() < WARM:
                await asyncio.sleep(0.005)
            began, first, us = time.perf_counter(), await self.done(), await self.redis_us()
            cpu = _cpu_s(worker.pid)
            while (last := await self.done()) < first + cycles:
                await asyncio.sleep(0.02)
            seconds, n = time.perf_counter() - began, last - first
            return {
                "per_s": n / seconds,
                "redis_us": (await self.redis_us() - us) / n,
                "worker_us": (_cpu_s(worker.pid) - cpu) * 1e6 / n,
            }
        finally:
            worker.kill()
            worker.wait()

    async def money(self, pairs: int) -> dict[str, float]:
        """Reserve + settle per second, 13 counters each, under a swarm's and an agent's budget."""
        costs = CostManager.of(self.board)
        await costs.set_budget(Budget(daily_limit=100_000))
        await costs.set_budget(AgentBudget(agent_id="w", daily_limit=100_000, hourly_limit=None, task_limit=None))
        spender = Spender(agent_id="w", role="writer", task_id="t", tier="fast")

        pace = Pace("model:gpt-6-luna")

        async def pair(n: int) -> None:
            for _ in range(n):
                await costs.ledger.settle(await costs.ledger.reserve(spender, 1000, 100), 900, 90)

        async def call(n: int) -> None:
            for _ in range(n):
                metered = await costs.begin(
                    spender, "gpt-6-luna", input_tokens=500, max_output_tokens=200, hold_s=60, item_id="i", step="s",
                    pace=pace,
                )  # fmt: skip
                assert isinstance(metered, MeteredCall)
                async with metered:
                    await metered.send()
                    await metered.settle(TokenUsage(prompt_tokens=500, completion_tokens=100))

        told: dict[str, float] = {}
        for name, work, callers in (
            ("pairs", pair, 50),
            ("alone", pair, 1),
            ("calls", call, 50),
            ("call_alone", call, 1),
        ):
            each = pairs // (callers if callers > 1 else 10)
            us, began = await self.redis_us(), time.perf_counter()
            await asyncio.gather(*(work(each) for _ in range(callers)))
            n = each * callers
            told[f"{name}_per_s"] = n / (time.perf_counter() - began)
            told[f"{name}_redis_us"] = (await self.redis_us() - us) / n
        return told

    async def latency(self, samples: int) -> dict[str, float]:
        """Submit → handler starts, microseconds."""
        worker = self.start_worker("stamp")
        starts: list[float] = []
        try:
            for n in range(samples + 20):
                item_id = f"l{n:06d}"
                asked = time.monotonic_ns()
                await self.board.submit(Submission(id=item_id, section="jobs", payload=PAYLOAD))
                while (item := await self.board.get(item_id)).status != "done":
                    await asyncio.sleep(0.0005)
                if n >= 20:
                    starts.append((item.result["began_ns"] - asked) / 1000)
                await asyncio.sleep(0.002)  # the worker is idle again
        finally:
            worker.kill()
            worker.wait()
        cuts = statistics.quantiles(starts, n=100)
        return {"p50_us": cuts[49], "p95_us": cuts[94], "p99_us": cuts[98]}


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(kind: str, *, backlogs: list[int], cycles: int, samples: int) -> dict[str, Any]:
    """One repetition of everything."""
    row: dict[str, Any] = {}
    async with Bench(kind) as bench:
        base = await bench.memory()
        started = time.perf_counter()
        for n in range(2000):
            await bench.board.submit(Submission(id=f"one{n}", section="jobs", payload=PAYLOAD))
        row["enqueue_one_per_s"] = 2000 / (time.perf_counter() - started)
        row["enqueue_batch_per_s"] = await bench.fill(98_000)
        row["bytes_waiting"] = (await bench.memory() - base) / 100_000
    for mode in ("batches", "agents"):
        async with Bench(kind) as bench:
            base = await bench.memory()
            await bench.fill(cycles + WARM + 1000)
            row[mode] = await bench.drain(mode, cycles)
            if mode == "batches":
                row["bytes_completed"] = (await bench.memory() - base) / (cycles + WARM + 1000)
    for backlog in backlogs:
        async with Bench(kind) as bench:
            await bench.fill(backlog + cycles + WARM + 1000)
            row[f"behind_{backlog}"] = await bench.drain("batches", cycles)
    async with Bench(kind) as bench:
        row["money"] = await bench.money(cycles // 2)
    async with Bench(kind) as bench:
        row["bus"] = await bus(bench.server.url, messages=cycles // 10, samples=samples)
    async with Bench(kind) as bench:
        row["latency"] = await bench.latency(samples)
    return row


def medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure over the repetitions."""
    first = rows[0]
    return {
        name: medians([row[name] for row in rows])
        if isinstance(value, dict)
        else statistics.median(row[name] for row in rows)
        for name, value in first.items()
    }


def show(middle: dict[str, Any], backlogs: list[int]) -> None:
    """The table."""
    table = Table(title="medians")
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column("Redis µs a cycle", justify="right")
    table.add_column("worker µs a cycle", justify="right")
    base = middle[f"behind_{backlogs[0]}"]
    rows = [("cycles/s, batches of 100", "batches"), ("cycles/s, 50 agents one each", "agents")]
    rows += [(f"cycles/s, {backlog:,} waiting behind", f"behind_{backlog}") for backlog in backlogs]
    for title, name in rows:
        told = middle[name]
        table.add_row(title, f"{told['per_s']:,.0f}", f"{told['redis_us']:.1f}", f"{told['worker_us']:.1f}")
    last = middle[f"behind_{backlogs[-1]}"]
    table.add_row(
        f"cost at {backlogs[-1]:,} ÷ at {backlogs[0]:,}",
        f"{base['per_s'] / last['per_s']:.2f}",
        f"{last['redis_us'] / base['redis_us']:.2f}",
    )
    table.add_row("enqueue/s, one at a time", f"{middle['enqueue_one_per_s']:,.0f}")
    table.add_row("enqueue/s, batches of 500", f"{middle['enqueue_batch_per_s']:,.0f}")
    lat = middle["latency"]
    table.add_row(
        "submit → start, µs p50 / p95 / p99", f"{lat['p50_us']:,.0f} / {lat['p95_us']:,.0f} / {lat['p99_us']:,.0f}"
    )
    money = middle["money"]
    for title, name in (
        ("reserve + settle pairs/s, 50 callers", "pairs"),
        ("reserve + settle pairs/s, one caller", "alone"),
        ("metered calls/s, 50 callers", "calls"),
    ):
        table.add_row(title, f"{money[f'{name}_per_s']:,.0f}", f"{money[f'{name}_redis_us']:.1f}")
    table.add_row(
        "µs added to a model call (record, turn, reserve; settle), one caller",
        f"{1e6 / money['call_alone_per_s']:,.0f}",
    )
    told = middle["bus"]
    table.add_row("deliveries/s, one message to 50 agents of a process", f"{told['deliveries_per_s']:,.0f}")
    table.add_row("messages/s published to a topic, 256 a call", f"{told['topic_published_per_s']:,.0f}")
    table.add_row("messages/s through a processor, each published on", f"{told['topic_processed_per_s']:,.0f}")
    table.add_row(
        "enqueue → a waiting dequeue_task returns, µs p50 / p95",
        f"{told['dequeue_p50_us']:,.0f} / {told['dequeue_p95_us']:,.0f}",
    )
    table.add_row("bytes per waiting item", f"{middle['bytes_waiting']:,.0f}")
    table.add_row("bytes per completed item", f"{middle['bytes_completed']:,.0f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the runtime.")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument(
        "--kind", choices=("redis", "valkey"), default="redis" if "redis" in available_servers() else "valkey"
    )
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "bench.json")
    parser.add_argument("--quick", action="store_true", help="a small backlog and few samples: does it run?")
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return
    backlogs = [1_000, 10_000] if options.quick else [1_000, 10_000, 1_000_000]
    cycles, samples = (3_000, 50) if options.quick else (20_000, 500)
    rows = []
    for rep in range(options.reps):
        print(f"repetition {rep + 1} of {options.reps}", file=sys.stderr, flush=True)
        rows.append(asyncio.run(measure(options.kind, backlogs=backlogs, cycles=cycles, samples=samples)))
    middle = medians(rows)
    machine = {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "server": options.kind,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine, "medians": middle, "repetitions": rows}, indent=2) + "\n")
    show(middle, backlogs)
    print(
        f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB", file=sys.stderr
    )


if __name__ == "__main__":
    main()
