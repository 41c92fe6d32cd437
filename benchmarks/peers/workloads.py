"""The workloads: each makes one measurement of one peer on a fresh server, and returns its figures by name.

The name of a figure carries its unit. Rates are tasks (items, deliveries) per second, as ``per_s``.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .adapters import Peer
from .environments import Environments
from .fanout import FANOUTS
from .pipelines import PIPELINES
from .rig import LATENCY_S, Bench, FailedError, Process, until

__all__ = ["SIZES", "Workloads", "percentiles"]

SIZES = (1_000, 10_000, 100_000, 1_000_000)
BUSY_S = 1.0  # for which a peer is given work, going by its pace; ours is then measured for more than a second
STALLED_S = 300.0  # the slowest peer needs 20 for what it is given
IDLE_S = 60.0  # what a worker does now and then, it does once a minute at least
SINGLES, BULK, BULK_BY_SINGLES = 2_000, 20_000, 4_000  # tasks that are submitted
REMEMBERED = 10_000  # tasks whose bytes are counted
SAMPLES, SAMPLES_S = 500, 3.0
PUBLISHED, PUBLISHED_S = 1_000, 5.0  # messages to subscribers
STAGED_S = 2.0  # for which a framework is given items, one after the other and again many at once


class Workloads:
    """Makes measurements.

    Args:
        environments: prepared.
        folder: for backlogs, which are built once and begun with in each repetition. They may come to some gigabytes.
        scale: of the amount of work; 1 keeps each peer busy for some seconds.
    """

    def __init__(self, environments: Environments, folder: Path, *, scale: float = 1.0) -> None:
        self._environments, self._folder, self._scale = environments, folder, scale

    def drain(self, peer: Peer, *, workers: int = 1, appendonly: bool = False) -> dict[str, Any]:
        """Submit tasks, then start the workers: the rate from when all are warm until Redis knows of all as done."""
        tasks = self._some(peer.pace * BUSY_S * (1 + workers) / 2, least=400)
        bodies = tasks * peer.bodies
        with Bench(self._environments, appendonly=appendonly) as bench:
            bench.submit(peer.name, tasks)
            started = [bench.start(peer.name, "work", slot=slot) for slot in range(workers)]
            _until_bodies(bench, started, 1, workers=workers)
            _until_bodies(bench, started, bodies // 20)
            meter, before = bench.meter(started), bench.probe.read().bodies
            _until_bodies(bench, started, bodies)
            until(
                lambda: peer.is_drained(bench.redis, tasks), f"{peer.name}: {tasks} tasks done", within_s=60, every_s=0.005,
                alive=started,
            )  # fmt: skip
            measured = (bodies - before) / peer.bodies
            told = meter.stop(round(measured))
            twice = bench.probe.read().bodies - bodies
        return {"per_s": measured / told["seconds"], "tasks": tasks, "bodies_twice": twice, **told}

    def enqueue(self, peer: Peer) -> dict[str, Any]:
        """Submit one task after the other, and many in the peer's quickest way."""
        with Bench(self._environments) as bench:
            n = self._some(SINGLES)
            one = n / float(bench.ask(peer.name, "submit", n=n)["seconds"])
        with Bench(self._environments) as bench:
            return {
                "one_per_s": one,
                "bulk_per_s": bench.submit(peer.name, self._some(BULK if peer.bulk else BULK_BY_SINGLES)),
            }

    def latency(self, peer: Peer) -> dict[str, Any]:
        """One task at a time for an idle worker: µs until its body begins and until its result is seen."""
        with Bench(self._environments) as bench:
            worker = bench.start(peer.name, "work", idle=True)
            samples = bench.ask(
                peer.name,
                "latency",
                within_s=LATENCY_S,
                slot=1,
                n=self._some(SAMPLES),
                most_s=max(1.0, SAMPLES_S * self._scale),
            )
            worker.check()
            told: dict[str, Any] = {"samples": len(samples["start_us"])}
        for name in ("start", "result"):
            told |= {f"{name}_{cut}_us": value for cut, value in percentiles(samples[f"{name}_us"]).items()}
        return told

    def idle(self, peers: Sequence[Peer]) -> dict[str, dict[str, Any] | FailedError]:
        """By peer, what a worker that has nothing to do sends to Redis, or why it is not known. They have the same minute,
        each a server of its own: what they need of the machine meanwhile is little."""
        idle_s = max(1.0, IDLE_S * self._scale)
        told: dict[str, dict[str, Any] | FailedError] = {}
        with ExitStack() as ending:
            benches: dict[str, Bench] = {}
            for peer in peers:
                try:
                    bench = ending.enter_context(Bench(self._environments))
                    bench.start(peer.name, "work", idle=True)
                    bench.ask(peer.name, "latency", within_s=LATENCY_S, slot=1, n=1)  # it has worked, and waits again
                    benches[peer.name] = bench
                except FailedError as error:
                    told[peer.name] = error
            with ThreadPoolExecutor(max(1, len(benches))) as pool:
                watched = pool.map(lambda bench: bench.watch_commands(idle_s), benches.values())
                for name, (sent, inside) in zip(benches, watched, strict=True):
                    told[name] = {"sent_per_s": sent / idle_s, "commands_per_s": (sent + inside) / idle_s}
        return told

    def memory(self, peer: Peer) -> dict[str, Any]:
        """Redis' bytes a waiting task, and a completed one with all that is kept of it."""
        first = self._some(REMEMBERED / 10)
        n = self._some(min(REMEMBERED, peer.pace * 2))
        with Bench(self._environments) as bench:
            bench.submit(peer.name, first)
            some = bench.memory()
            bench.submit(peer.name, n, first=first)
            waiting = (bench.memory() - some) / n
            empty = some - waiting * first
            with bench.start(peer.name, "work") as worker:
                _until_bodies(bench, [worker], first + n)
                until(
                    lambda: peer.is_drained(bench.redis, first + n),
                    f"{peer.name}: all done",
                    within_s=60,
                    alive=[worker],
                )
            time.sleep(0.2)  # what was kept for the worker's connections goes
            completed = (bench.memory() - empty) / (first + n)
        return {"waiting_bytes": waiting, "completed_bytes": completed}

    def growth(self, peer: Peer, *, waiting: int) -> dict[str, Any]:
        """Drain some tasks with at least so many waiting behind them."""
        measured = self._measured_behind(peer)
        with Bench(self._environments, backlog=self._backlog(peer, waiting)) as bench:
            worker = bench.start(peer.name, "work")
            _until_bodies(bench, [worker], measured // 10)
            meter, before = bench.meter([worker]), bench.probe.read().bodies
            _until_bodies(bench, [worker], before + measured)
            done = bench.probe.read().bodies - before
            told = meter.stop(done)
        return {"per_s": done / told["seconds"], **told}

    def build_backlogs(self, peer: Peer, sizes: Sequence[int]) -> None:
        """Submit a growing backlog by the peer's own calls, and save it at each size.

        Those that are there are kept, except ours: its code may have changed.
        """
        if peer.environment != "ours" and all(self._backlog(peer, size).exists() for size in sizes):
            return
        more = self._measured_behind(peer) * 3
        with Bench(self._environments) as bench:
            there = 0
            for size in sorted(sizes):
                bench.submit(peer.name, size + more - there, first=there)
                there = size + more
                bench.redis.save()
                shutil.move(bench.server.folder / "dump.rdb", self._backlog(peer, size))

    def pipeline(self, name: str) -> dict[str, Any]:
        """Items per second through four stages; a framework's quicker way of those that it was asked in."""
        found = PIPELINES[name]
        told = self._script("pipelines", name, "pipelines", found.module, {
            "items": self._some(2_000), "most_s": STAGED_S * self._scale, "saver": found.saver,
        })  # fmt: skip
        quickest = max(told, key=lambda each: float(each["per_s"]))
        return {
            "per_s": quickest["per_s"],
            "way": quickest["way"],
            "ways": {each["way"]: each["per_s"] for each in told},
        }

    def fanout(self, name: str) -> dict[str, Any]:
        """One message to fifty subscribers: deliveries a second, and µs until the first and the last has it."""
        found = FANOUTS[name]
        with Bench(self._environments) as bench:
            order = {
                "url": bench.url, "samples": self._some(PUBLISHED), "most_s": PUBLISHED_S,
                "connections": found.connections,
            }  # fmt: skip
            [told] = self._script(found.environment, name, "fanout", found.module, order)
        first, last = percentiles(told["first_us"]), percentiles(told["last_us"])
        return {
            "per_s": told["per_s"],
            "first_p50_us": first["p50"],
            "last_p50_us": last["p50"],
            "last_p99_us": last["p99"],
        }

    def _script(
        self, environment: str, name: str, folder: str, module: str, order: dict[str, Any]
    ) -> list[dict[str, Any]]:
        python = self._environments.pythons[environment]
        with Process(name, [str(python), "-m", f"peers.{folder}.{module}", json.dumps(order)], {}) as script:
            return script.answers()

    def _some(self, amount: float, *, least: int = 100) -> int:
        return max(least, round(amount * self._scale))

    def _measured_behind(self, peer: Peer) -> int:
        return self._some(min(20_000, peer.pace * BUSY_S))

    def _backlog(self, peer: Peer, waiting: int) -> Path:
        return self._folder.resolve() / f"{peer.name}-{waiting}.rdb"


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 of at least two values.

    Raises:
        FailedError: there are fewer.
    """
    if len(values) < 2:
        raise FailedError(f"found {len(values)} samples, needed 2 or more")
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}


def _until_bodies(bench: Bench, started: Sequence[Process], bodies: int, *, workers: int = 1) -> None:
    def enough() -> bool:
        count = bench.probe.read()
        return count.bodies >= bodies and count.workers >= workers

    until(enough, f"{bodies} bodies, {workers} workers", within_s=STALLED_S, alive=started)
