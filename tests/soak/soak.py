"""The soak: a swarm at work for half an hour, with a fault every minute; does anything grow, leak, or get lost?

    python tests/soak/soak.py [--seconds 1800] [--rate 300] [--fault-every 60] [--out benchmarks/results/soak.json]

A private Valkey (AOF everysec), worker processes of `pipeline`, and this process, which submits items at a steady rate. Two
workers are never touched, so that their memory can be followed; a third is the victim. In turn: the victim is killed and
another one started; every client connection is cut, again and again; Redis is killed and is away for 2 s; the victim is
frozen for two leases. At the end the swarm drains.

A process keeps the memory of its worst moment: after one more item in hand at once than ever before, its heap is larger
for good. So the warm-up (5 minutes, or a third of a shorter run) begins with a backlog that fills every hand, and faults
come four times as often in it: what grows later grows with time. Exits with 1 unless

- ``swarm audit`` is clean, nothing is lost, and every item has come to its end,
- no worker that lived long enough grew by more than 2 MB an hour after the warm-up (least squares),
- the event log, the ledger and the board stayed within what retention promises,
- no process said that a task was destroyed while it was pending.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline import BOARD, KEEP_S, SECTIONS
from rich.console import Console
from rich.table import Table

from swarm_infrastructure import Blackboard, Submission
from swarm_infrastructure.errors import SwarmError
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import RedisServer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAMESPACE = "soak"
LEASE_S = 5.0
EVENTS_KEEP, EVENTS_KEEP_S = 20_000, 30.0
LEDGER_KEEP = 5_000
DEDUP_S = 120.0
SWEEP_S = 5.0
KEEP_S_OF_SETTLED = 3600.0  # reservations, so that a repeated settlement is recognised
ASKS_EVERY = 10  # one item in so many asks the model
STEADY = 2  # workers that nothing is done to
LEAST_SAMPLES = 12  # of a worker after the warm-up, before its slope means anything
MOST_MB_PER_H = 2.0
DRAIN_S = 120.0
BACKLOG_S = 20.0  # of items that wait when the warm-up begins
WARM_UP_FAULTS = 4  # times as often as later


def slope_per_h(points: Sequence[tuple[float, float]]) -> float:
    """Least squares: how much a value grew per hour; points are (seconds, value)."""
    middle, mean = statistics.fmean(at for at, _ in points), statistics.fmean(value for _, value in points)
    spread = sum((at - middle) ** 2 for at, _ in points)
    return 3600 * sum((at - middle) * (value - mean) for at, value in points) / spread if spread else 0.0


class Soak:
    """One run."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.server = RedisServer("valkey", persist=True, options={"maxmemory": "1gb"})
        self.samples, self.log = folder / "samples.jsonl", folder / "workers.log"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.victim: subprocess.Popen[bytes] | None = None
        self.redis: list[dict[str, float]] = []
        self.faults: Counter[str] = Counter()
        self.began = 0.0
        self.accepted = self.refused = 0
        self.late_s = 0.0  # how far submitting fell behind at most

    @property
    def warm_s(self) -> float:
        """How long the warm-up takes."""
        return min(300.0, float(self.options.seconds) / 3)

    # -- parts ------------------------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("REDIS_", "SWARM_", "OPENAI", "ANTHROPIC"))
        }
        return clean | {
            "REDIS_URL": self.server.url, "SWARM_ID": NAMESPACE, "SWARM_LEASE_S": str(LEASE_S), "SWARM_LOG_LEVEL": "WARNING",
            "SWARM_EVENTS_KEEP": str(EVENTS_KEEP), "SWARM_EVENTS_KEEP_S": str(EVENTS_KEEP_S),
            "SWARM_LEDGER_KEEP": str(LEDGER_KEEP), "SWARM_SHUTDOWN_GRACE_S": "10",
        }  # fmt: skip

    def start_worker(self) -> subprocess.Popen[bytes]:
        words = [
            sys.executable,
            str(HERE / "pipeline.py"),
            "--samples",
            str(self.samples),
            "--every",
            str(self.options.every),
        ]
        with self.log.open("ab") as log:
            process = subprocess.Popen(words, env=self.environment, stdout=log, stderr=log, cwd=self.folder)
        self.workers.append(process)
        return process

    async def submit(self) -> None:
        """Items at a steady rate; what a dead Redis delayed is made up for."""
        number, step_s = 0, 0.1
        while (now_s := time.monotonic() - self.began) < self.options.seconds:
            due = round((now_s + BACKLOG_S) * self.options.rate)
            if now_s > self.warm_s:
                self.late_s = max(self.late_s, (due - number) / self.options.rate - step_s)
            while number < due:
                part = range(number, min(due, number + 200))
                submissions = [
                    Submission(
                        id=f"i{n}", section=SECTIONS[0], content_hash=f"h{n}", dedup_s=DEDUP_S, priority=n % 3,
                        payload={"n": n, "asks": n % ASKS_EVERY == 0, "text": "x" * 200},
                    )
                    for n in part
                ]  # fmt: skip
                try:
                    self.accepted += sum(bool(each) for each in await self.board.submit(*submissions))
                except SwarmError as error:
                    print(f"not submitted, trying again: {error}", file=sys.stderr)
                    self.refused += 1
                    await asyncio.sleep(0.5)
                    continue
                number = part.stop
            await asyncio.sleep(step_s)

    async def watch(self) -> None:
        """Redis, every so often."""
        keys = self.board.keys
        while True:
            try:
                memory, persistence = (
                    await self.store.command("INFO", "memory"),
                    await self.store.command("INFO", "persistence"),
                )
                sizes = await self.store.commands(
                    ("XLEN", keys.events), ("XLEN", keys.ledger), ("HLEN", keys.items), ("HLEN", keys.base), ("HLEN", keys.dedup),
                    ("HLEN", keys.spend), ("HLEN", keys.ledger_base), ("HLEN", keys.reservations), ("HLEN", keys.agents),
                    ("DBSIZE",),
                )  # fmt: skip
                names = (
                    "events", "ledger", "items", "base", "marks", "counters", "ledger_base", "reservations", "agents", "keys",
                )  # fmt: skip
                facts = {name: float(size) for name, size in zip(names, sizes, strict=True)}
                trimmed = await self.board.events.trimmed()
                facts["events_ever"] = facts["events"] + (trimmed.entries if trimmed else 0)
                facts |= {
                    "at": time.time(),
                    "used_memory": memory["used_memory"],
                    "aof": persistence["aof_current_size"],
                }
                stats = await self.board.get_all_stats()
                facts["waiting"] = sum(
                    n for each in stats.values() for s, n in each["by_status"].items() if s != "done"
                )
                self.redis.append(facts)
                if self.options.verbose:
                    print(json.dumps({name: round(value) for name, value in facts.items()}), file=sys.stderr)
            except SwarmError as error:
                print(f"not sampled: {error}", file=sys.stderr)
            await asyncio.sleep(self.options.every)

    # -- faults -----------------------------------------------------------------------------------------------------

    async def hurt(self) -> None:
        """A fault every so often, in turn."""
        ways: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("worker killed", self.kill_worker),
            ("connections cut", self.cut_connections),
            ("Redis killed, 2 s away", self.kill_redis),
            ("worker frozen for two leases", self.freeze_worker),
        ]
        turn = 0
        while True:
            warm = time.monotonic() - self.began >= self.warm_s
            await asyncio.sleep(self.options.fault_every / (1 if warm else WARM_UP_FAULTS))
            name, way = ways[turn % len(ways)]
            turn += 1
            print(f"{time.monotonic() - self.began:6.0f} s  {name}", file=sys.stderr)
            await way()
            self.faults[name] += 1

    async def kill_worker(self) -> None:
        assert self.victim is not None
        self.victim.kill()
        await asyncio.to_thread(self.victim.wait)
        self.victim = self.start_worker()

    async def cut_connections(self) -> None:
        for _ in range(10):
            await self.store.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await self.store.command("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")
            await asyncio.sleep(0.5)

    async def kill_redis(self) -> None:
        await asyncio.to_thread(self.server.kill)
        await asyncio.sleep(2)
        await asyncio.to_thread(self.server.restart)

    async def freeze_worker(self) -> None:
        assert self.victim is not None
        self.victim.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2 * LEASE_S)
        self.victim.send_signal(signal.SIGCONT)

    # -- the run ----------------------------------------------------------------------------------------------------

    async def run(self) -> dict[str, Any]:
        with self.server:
            async with (
                Store(self.server.url) as self.store,
                Blackboard(self.store, BOARD, namespace=NAMESPACE) as self.board,
            ):
                for _ in range(STEADY):
                    self.start_worker()
                self.victim = self.start_worker()
                try:
                    return await self._run()
                finally:
                    for worker in self.workers:
                        if worker.poll() is None:
                            worker.send_signal(signal.SIGCONT)
                            worker.kill()
                            worker.wait()

    async def _run(self) -> dict[str, Any]:
        self.began = time.monotonic()
        started = time.time()
        others = [asyncio.create_task(self.watch()), asyncio.create_task(self.hurt())]
        await self.submit()
        others[1].cancel()  # a frozen worker must go on, a dead Redis come back
        await asyncio.gather(others[1], return_exceptions=True)
        if not self.server.running:
            await asyncio.to_thread(self.server.restart)
        assert self.victim is not None
        if self.victim.poll() is None:
            self.victim.send_signal(signal.SIGCONT)
        drained_s = await self._drain()
        others[0].cancel()
        await asyncio.gather(others[0], return_exceptions=True)
        codes = await self._stop_workers()
        audited = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-m", "swarm_infrastructure", "audit", "--output", "json"],
            env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        seq = int(await self.store.command("GET", self.board.keys.seq) or 0)
        return self._report(started, drained_s, codes, audited, seq)

    async def _drain(self) -> float | None:
        """Seconds until nothing waits and nothing is held any more; None if that did not come."""
        began = time.monotonic()
        while time.monotonic() - began < DRAIN_S:
            stats = await self.board.get_all_stats()
            if not sum(n for each in stats.values() for status, n in each["by_status"].items() if status != "done"):
                return round(time.monotonic() - began, 1)
            await asyncio.sleep(0.2)
        return None

    async def _stop_workers(self) -> list[int]:
        alive = [worker for worker in self.workers if worker.poll() is None]
        for worker in alive:
            worker.terminate()
        return [await asyncio.to_thread(worker.wait, 60) for worker in alive]

    # -- what came of it --------------------------------------------------------------------------------------------

    def _report(
        self,
        started: float,
        drained_s: float | None,
        codes: list[int],
        audited: subprocess.CompletedProcess[str],
        seq: int,
    ) -> dict[str, Any]:
        warm = started + self.warm_s
        ended = started + self.options.seconds
        log = self.log.read_text(errors="replace")
        redis = [each for each in self.redis if warm <= each["at"] <= ended]
        entries_per_s = (redis[-1]["events_ever"] - redis[0]["events_ever"]) / (redis[-1]["at"] - redis[0]["at"])
        # what may not go yet, and what comes until the next sweeps; after a fault a sweep may be late by a lease
        slack_s = 2 * SWEEP_S + LEASE_S + 10
        bounds = {
            "events": 1.05 * max(EVENTS_KEEP, entries_per_s * EVENTS_KEEP_S) + entries_per_s * slack_s,
            "ledger": LEDGER_KEEP + self.options.rate / ASKS_EVERY * slack_s * 2,
            "items": self.options.rate * (KEEP_S + slack_s) + max(each["waiting"] for each in redis),
            "reservations": self.options.rate / ASKS_EVERY * (KEEP_S_OF_SETTLED + slack_s),
            "marks": self.options.rate * (DEDUP_S + 20 * SWEEP_S + slack_s),
        }
        found = {name: max(each[name] for each in redis) for name in bounds}
        workers = self._workers(warm, ended)
        faults_found = []
        if audited.returncode:
            faults_found.append(f"the audit found something: {audited.stdout[-2000:]}{audited.stderr[-2000:]}")
        if drained_s is None:
            faults_found.append(f"it did not drain within {DRAIN_S:g} s")
        if seq != self.accepted:
            faults_found.append(f"{self.accepted} items were accepted, Redis counts {seq}")
        faults_found += [f"{n}: {found[n]:.0f}, needed at most {bounds[n]:.0f}" for n in bounds if found[n] > bounds[n]]
        for each in workers:
            if each["samples"] >= LEAST_SAMPLES and each["rss_mb_per_h"] > MOST_MB_PER_H:
                faults_found.append(f"worker {each['pid']} grew by {each['rss_mb_per_h']} MB an hour")
        if destroyed := log.count("Task was destroyed"):
            faults_found.append(f"{destroyed} tasks were destroyed while they were pending")
        if any(codes):
            faults_found.append(f"workers ended with {codes}")
        return {
            "clean": not faults_found, "found": faults_found, "seconds": self.options.seconds, "rate": self.options.rate,
            "fault_every_s": self.options.fault_every, "faults": dict(self.faults), "python": platform.python_version(),
            "cpus": os.cpu_count(), "accepted": self.accepted, "submitting_fell_behind_s": round(self.late_s, 1),
            "drained_s": drained_s, "audit": json.loads(audited.stdout or "null"), "workers": workers,
            "tasks_destroyed": destroyed, "warnings": sum("warning" in line for line in log.splitlines()),
            "tracebacks": log.count("Traceback"), "bounds": {name: round(value) for name, value in bounds.items()},
            "most": {name: round(value) for name, value in found.items()}, "event_entries_per_s": round(entries_per_s),
            "redis": {
                "used_memory_mb_per_h": self._slope(redis, "used_memory", 1e6),
                "used_memory_mb": [
                    round(pick(each["used_memory"] for each in redis) / 1e6) for pick in (min, max)
                ],
                "aof_mb_most": round(max(each["aof"] for each in redis) / 1e6),
                "counters_most": round(max(each["counters"] for each in redis)),
                "waiting_most": round(max(each["waiting"] for each in redis)),
            },
            "samples": [{name: round(value) for name, value in each.items()} for each in self.redis],
        }  # fmt: skip

    @staticmethod
    def _slope(rows: list[dict[str, float]], name: str, unit: float) -> float:
        return round(slope_per_h([(row["at"], row[name] / unit) for row in rows]), 2)

    def _workers(self, warm: float, ended: float) -> list[dict[str, Any]]:
        rows: dict[int, list[dict[str, float]]] = {}
        for line in self.samples.read_text().splitlines():
            row = json.loads(line)
            rows.setdefault(row["pid"], []).append(row)
        workers, minute = [], max(1, round(60 / self.options.every))
        for pid, all_rows in rows.items():
            lived = [row for row in all_rows if row["at"] <= ended]
            kept = [row for row in lived if row["at"] >= max(warm, lived[0]["at"] + (warm - first_of(rows)))]
            workers.append(
                {
                    "pid": pid, "lived_s": round(lived[-1]["at"] - lived[0]["at"]), "samples": len(kept),
                    "rss_mb": [round(lived[0]["rss_kb"] / 1024, 1), round(lived[-1]["rss_kb"] / 1024, 1)],
                    "rss_mb_per_h": self._slope(kept, "rss_kb", 1024) if len(kept) > 2 else None,
                    "objects_per_h": round(self._slope(kept, "objects", 1)) if len(kept) > 2 else None,
                    "rss_mb_every_minute": [round(row["rss_kb"] / 1024, 1) for row in lived[::minute]],
                    "fds_most": round(max(row["fds"] for row in lived)), "tasks_most": round(max(row["tasks"] for row in lived)),
                }
            )  # fmt: skip
        return workers


def first_of(rows: dict[int, list[dict[str, float]]]) -> float:
    """When the first worker began."""
    return min(each[0]["at"] for each in rows.values())


def show(report: dict[str, Any]) -> None:
    """The report, for people."""
    table = Table("what", "value", title=f"soak: {report['seconds']} s at {report['rate']} items/s")
    for name in (
        "clean",
        "accepted",
        "faults",
        "submitting_fell_behind_s",
        "drained_s",
        "tasks_destroyed",
        "tracebacks",
        "redis",
    ):
        table.add_row(name, str(report[name]))
    for name, bound in report["bounds"].items():
        table.add_row(f"{name}, most", f"{report['most'][name]} (bound {bound})")
    for each in report["workers"]:
        table.add_row(
            f"worker {each['pid']}",
            ", ".join(
                f"{name} {value}" for name, value in each.items() if not name.startswith(("pid", "rss_mb_every"))
            ),
        )
    for each in report["found"]:
        table.add_row("FOUND", each)
    Console(width=150).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description="Work for a long time under faults, and see what grows.")
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--rate", type=float, default=300, help="items per second")
    parser.add_argument("--fault-every", type=float, default=60, help="seconds")
    parser.add_argument("--every", type=float, default=10, help="seconds between samples")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "soak.json")
    parser.add_argument("--verbose", action="store_true", help="show each sample")
    parser.add_argument("--keep", type=Path, help="a folder that keeps the samples and what the workers said")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swarm-soak-") as folder:
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(Soak(options, options.keep or Path(folder)).run())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    show(report)
    return 0 if report["clean"] else 1


if __name__ == "__main__":
    sys.exit(main())
