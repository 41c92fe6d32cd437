"""The runner: this runtime and its peers, side by side, in one run.

    python -m peers.run [--reps 5] [--only drain,latency] [--peers ours,bullmq-node] [--without ceiling] [--quick]

Each repetition goes through the workloads; each workload goes round its peers, and begins with another one each time.
`REPETITIONS` says who takes part in how many. What was measured is in the result file after each measurement, so a run
that is stopped has lost nothing. The exit code is 0 if every floor holds, 1 if one does not, if something could not be
measured (in a run that was narrowed: of what it was to measure), 2 for a name that does not exist, 3 if something is not
installed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import redis

from swarm_infrastructure import SwarmError

from .adapters import PEERS, Peer, expand, peer_called
from .ceiling import measure_ceiling
from .environments import REPOSITORY, Environments, MissingError
from .fanout import FANOUTS
from .pipelines import PIPELINES
from .report import publish, summary
from .rig import FailedError
from .targets import faults
from .workloads import SIZES, Workloads

ROUNDS = (
    ("drain", "scaling", "aof"), ("enqueue",), ("latency",), ("idle",), ("memory",), ("pipeline",), ("fanout",), ("growth",)
)  # fmt: skip
EACH, OTHERS = math.inf, "others"
SLOW = dict.fromkeys(
    ("saq", "streaq", "celery", "rq"), 2
)  # far from the best in all that targets compare with the best
#: Workload → peer → how many repetitions it takes part in, the first ones. Whatever a target compares (see `targets`) is
#: measured in each; the others as often as it takes to see where they stand; and once what comes out the same each time.
REPETITIONS: Mapping[str, Mapping[str, float]] = {
    "ceiling": {"drain": EACH, OTHERS: 1},  # by the round that it opens
    "drain": SLOW | {OTHERS: EACH},
    "scaling": {"ours": EACH, OTHERS: 1},
    "aof": {"ours": EACH, OTHERS: 1},
    "enqueue": SLOW | {OTHERS: EACH},
    "latency": SLOW | {OTHERS: EACH},
    "idle": {OTHERS: 1},
    "memory": {OTHERS: 1},
    "pipeline": dict.fromkeys(
        ("ours-pipeline", "ours-pipeline-alone", "langgraph-sqlite", "langgraph-memory", "pydantic-graph"), EACH
    )
    | {OTHERS: 2},
    "fanout": {"ours": EACH, "redis-py-50": EACH, "redis-py-1": EACH, OTHERS: 1},
    "growth": {"ours": EACH, OTHERS: 1},
}
WORKLOADS = tuple(workload for each in ROUNDS for workload in each)
PASSABLE = (FailedError, OSError, redis.RedisError, subprocess.SubprocessError, SwarmError)
AT_ONCE = 2  # backlogs that are built; nothing is measured meanwhile
RESULTS = REPOSITORY / "benchmarks" / "results"


@dataclass(frozen=True)
class Measurement:
    """One thing to measure."""

    workload: str
    peer: str
    make: Callable[[], dict[str, Any]]
    tags: dict[str, Any]

    @property
    def key(self) -> tuple[Any, ...]:
        """The same in each repetition."""
        return (self.workload, self.peer, *self.tags.values())


class Run:
    """One run and its result file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.quick, self.reps = options.quick, options.reps
        self.only, self.names = options.only, options.peers
        self.environments = Environments()
        self.without_ceiling = "ceiling" in options.without
        self.whole = not (options.narrowed or options.quick)
        self.path: Path = options.out or _next_path()
        self.backlogs: Path | None = options.backlogs
        self.most_waiting: int = options.most_waiting
        self.result: dict[str, Any] = {"left_out": options.without, "whole": self.whole, "peers": {}, "rows": []}
        self._began = time.monotonic()
        self._idled: Mapping[str, dict[str, Any] | Exception] | None = None  # by peer
        self._took_s: dict[tuple[Any, ...], float] = {}  # by the key of a measurement, when it was last made

    def prepare(self) -> None:
        """Make the environments, and write down who takes part and on which machine."""
        peers = [peer for peer in map(peer_called, self._of(PEERS)) if peer.workloads & set(self.only)]
        pipelines = {name: PIPELINES[name] for name in self._of(PIPELINES) if "pipeline" in self.only}
        fanouts = {name: FANOUTS[name] for name in self._of(FANOUTS) if "fanout" in self.only}
        if not (peers or pipelines or fanouts):
            raise ValueError(f"none of {', '.join(self.names)} takes part in {', '.join(self.only)}; name others")
        needed = {each.environment for each in [*peers, *fanouts.values()]}
        needed |= ({"pipelines"} if pipelines else set()) | (set() if self.without_ceiling else {"ceiling"})
        needed |= {"peers"} if self.whole else set()  # it draws the plots
        self.environments.prepare(needed)

        def takes_part(name: str, environment: str, packages: Sequence[str], **facts: Any) -> None:
            facts = {"language": "python", "durable": False, "settings": ""} | facts | {"environment": environment}
            self.result["peers"].setdefault(
                name, facts | {"versions": self.environments.versions(environment, packages)}
            )

        for each in peers:
            takes_part(
                each.name, each.environment, each.packages, language=each.language, durable=each.durable,
                settings=each.settings, delivery=each.delivery, bulk=each.bulk,
            )  # fmt: skip
        for name, found in pipelines.items():
            takes_part(name, "pipelines", found.packages, delivery=f"after a crash there is {found.keeps}")
        for name, client in fanouts.items():
            takes_part(name, client.environment, client.packages, settings=client.settings, delivery="pub/sub: none")
        self.result["machine"] = _machine()

    def _of(self, table: Mapping[str, Any]) -> list[str]:
        return [name for name in self.names if name in table]

    def go(self) -> None:
        """Measure everything, repetition by repetition."""
        with tempfile.TemporaryDirectory(prefix="peers-backlogs-") as folder:
            workloads = Workloads(self.environments, self.backlogs or Path(folder), scale=0.05 if self.quick else 1.0)
            if "growth" in self.only:
                self._build_backlogs(workloads)
            for rep in range(self.reps):
                for each in self.plan(rep, workloads):
                    self._measure(rep, each)
                self._say_how_long(rep, workloads)
        self.result["total_s"] = round(time.monotonic() - self._began)
        self.save()

    def plan(self, rep: int, workloads: Workloads) -> Iterator[Measurement]:
        """What is measured in a repetition, in this order."""
        names = self.names[rep % len(self.names) :] + self.names[: rep % len(self.names)]
        for around in ROUNDS:
            parts = [workload for workload in around if workload in self.only]
            round_ = [
                each
                for name in names
                for part in parts
                for each in self._measurements(part, name, workloads)
                if rep < repetitions_of(part, name)
            ]
            if round_ and not self.without_ceiling and rep < repetitions_of("ceiling", parts[0]):
                measure = partial(measure_ceiling, self.environments, quick=self.quick)
                yield Measurement("ceiling", parts[0], measure, {})
            yield from round_

    def _measurements(self, part: str, name: str, workloads: Workloads) -> Iterator[Measurement]:
        if part == "fanout" and name in FANOUTS:
            yield Measurement(part, name, partial(workloads.fanout, name), {})
        if part == "pipeline" and name in PIPELINES:
            yield Measurement(part, name, partial(workloads.pipeline, name), {})
        peer = peer_called(name) if name in PEERS else None
        if peer is None or part not in peer.workloads:
            return
        if part == "growth":
            for size in self._sizes(peer):
                yield Measurement(part, name, partial(workloads.growth, peer, waiting=size), {"waiting": size})
            return
        make: dict[str, Callable[[], dict[str, Any]]] = {
            "drain": partial(workloads.drain, peer),
            "scaling": partial(workloads.drain, peer, workers=2),
            "aof": partial(workloads.drain, peer, appendonly=True),
            "pipeline": partial(workloads.drain, peer),
            "enqueue": partial(workloads.enqueue, peer),
            "latency": partial(workloads.latency, peer),
            "idle": partial(self._idle, name, workloads),
            "memory": partial(workloads.memory, peer),
        }
        yield Measurement(part, name, make[part], {})

    def _idle(self, name: str, workloads: Workloads) -> dict[str, Any]:
        """Of one peer; all are measured when the first is asked for, for they need not much of the machine."""
        if self._idled is None:
            peers = [peer for peer in map(peer_called, self._of(PEERS)) if "idle" in peer.workloads]
            self._idled = workloads.idle(peers)
        told = self._idled[name]
        if isinstance(told, Exception):
            raise told
        return told

    def _measure(self, rep: int, each: Measurement) -> None:
        began, from_s = time.time(), time.monotonic()
        row: dict[str, Any] = {"rep": rep, "workload": each.workload, "peer": each.peer} | each.tags
        try:
            row |= each.make()
        except PASSABLE as error:  # a peer that fails is a result as well
            row["error"] = f"{type(error).__name__}: {error}"
        self._took_s[each.key] = took_s = time.monotonic() - from_s
        row |= {"at": round(began), "took_s": round(took_s, 1), "load": os.getloadavg()[0]}
        self.result["rows"].append(row)
        self.save()
        shown = {name: value for name, value in row.items() if name not in ("rep", "at", "load", "by_command", "ways")}
        print(
            f"{rep + 1}/{self.reps} " + " ".join(f"{name}={_short(value)}" for name, value in shown.items()), flush=True
        )

    def _say_how_long(self, rep: int, workloads: Workloads) -> None:
        """The repetitions to come measure no more than those that were, and take as long for it."""
        left_s = sum(
            self._took_s.get(each.key, 0.0)
            for later in range(rep + 1, self.reps)
            for each in self.plan(later, workloads)
        )
        passed_s = time.monotonic() - self._began
        left = f", about {left_s / 60:.0f} to go" if left_s else " in all"
        print(f"{rep + 1}/{self.reps} repetitions: {passed_s / 60:.0f} minutes{left}", flush=True)

    def _build_backlogs(self, workloads: Workloads) -> None:
        def build(peer: Peer) -> None:
            print(f"building backlogs of {peer.name}", flush=True)
            try:
                workloads.build_backlogs(peer, self._sizes(peer))
            except PASSABLE as error:
                print(f"no backlog of {peer.name}: {error}", flush=True)

        from_s = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(build, (peer for peer in map(peer_called, self._of(PEERS)) if "growth" in peer.workloads)))
        self.result["backlogs_s"] = round(time.monotonic() - from_s)
        print(f"backlogs built in {self.result['backlogs_s']} s", flush=True)

    def _sizes(self, peer: Peer) -> tuple[int, ...]:
        most = min(self.most_waiting, peer.most_waiting)
        return SIZES[:2] if self.quick else tuple(size for size in SIZES if size <= most)

    def save(self) -> None:
        """Write the result file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(self.result, indent=1) + "\n")
        beside.replace(self.path)


def repetitions_of(workload: str, peer: str) -> float:
    often = REPETITIONS[workload]
    return often.get(peer, often[OTHERS])


def _machine() -> dict[str, Any]:
    facts = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in facts if line.startswith("model name")]
    server = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
    node = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout if shutil.which("node") else ""
    return {
        "cpu": (models or [platform.processor()])[0], "cores": os.cpu_count(), "kernel": platform.release(),
        "python": platform.python_version(),
        "redis": server.split("v=")[1].split()[0], "node": node.strip().removeprefix("v"),
        "date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": _commit(),
    }  # fmt: skip


def _commit() -> str:
    """Of this repository, with a + if files differ from it; "" where there is none."""
    ask = ["git", "describe", "--always", "--abbrev=7", "--dirty=+", "--exclude=*"]
    told = subprocess.run(ask, cwd=REPOSITORY, capture_output=True, text=True) if shutil.which("git") else None
    return told.stdout.strip() if told is not None else ""


def _next_path() -> Path:
    numbers = [int(path.stem.partition("-")[2]) for path in RESULTS.glob("peers-*.json") if path.stem[6:].isdigit()]
    return RESULTS / f"peers-{max(numbers, default=0) + 1}.json"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
    return str(value)


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure this runtime and its peers, side by side.")
    parser.add_argument("--reps", type=int, default=5, help="repetitions; medians of fewer than 5 say little")
    parser.add_argument("--only", type=_words, default=[], help=f"workloads: {', '.join(WORKLOADS)}")
    parser.add_argument("--peers", type=_words, default=[], help="peers; all by default")
    parser.add_argument("--without", type=_words, default=[], help="peers to leave out, or: ceiling")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the work: does it run?")
    parser.add_argument("--most-waiting", type=int, default=SIZES[-1], help="the greatest backlog")
    parser.add_argument(
        "--backlogs", type=Path, metavar="FOLDER", help="keep the peers' backlogs here for the next run, within a day"
    )
    parser.add_argument("--out", type=Path, help="the result file; benchmarks/results/peers-N.json by default")
    parser.add_argument(
        "--publish", type=Path, metavar="RESULT", help="measure nothing: write docs/performance.md from a result file"
    )
    options = parser.parse_args(arguments)
    everybody = tuple(dict.fromkeys([*PEERS, *PIPELINES, *FANOUTS]))
    options.narrowed = bool(options.only or options.peers or options.without or options.most_waiting < SIZES[-1])
    try:
        for name in options.only:
            if name not in WORKLOADS:
                raise ValueError(f"workload: found {name!r}, needed one of {', '.join(WORKLOADS)}")
        without = expand(options.without, (*everybody, "ceiling"))
        options.peers = [name for name in expand(options.peers, everybody) or everybody if name not in without]
    except ValueError as error:
        parser.error(str(error))
    options.only = options.only or list(WORKLOADS)
    if options.backlogs:
        options.backlogs.mkdir(parents=True, exist_ok=True)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    if options.publish:
        publish(json.loads(options.publish.read_text()), options.publish)
        return 0
    run = Run(options)
    for name in options.without:
        print(f"left out, as asked: {name}")
    try:
        run.prepare()
    except ValueError as error:
        print(f"bench-peers: {error}", file=sys.stderr)
        return 2
    except (MissingError, subprocess.CalledProcessError) as error:
        print(f"bench-peers: {error}", file=sys.stderr)
        return 3
    run.go()
    print(summary(run.result))
    if run.whole:
        publish(run.result, run.path)
    print(f"written: {run.path}")
    found = faults(run.result)
    for fault in found:
        print(f"bench-peers: {fault}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started is ended on the way out
    sys.exit(main())
