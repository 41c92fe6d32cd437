"""What a measurement stands on: a server of its own, the processes of a peer, and what both have used.

Everything that is started here is ended here, by its process id.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from swarm_infrastructure.testing import RedisServer

from .adapters import Order, peer_called
from .environments import Environments
from .probe import Probe

__all__ = ["Bench", "FailedError", "Meter", "Process", "until"]

ROOT = Path(__file__).resolve().parents[1]  # where ``peers`` is a package
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
ENDING_S = 2.0
_INSIDE = re.compile(rb"\+[0-9.]+ \[\d+ lua\]")
LOADING_S = 300.0  # for the backlog of a million
ANSWER_S = 300.0  # for a script, and for the submits of a backlog
LATENCY_S = 60.0  # for some seconds of samples


class FailedError(Exception):
    """A peer did not do what it was to do; its last words are in the message."""


class Bench:
    """A fresh server on a port of its own, and a probe. Use it with ``with``.

    Args:
        environments: what peers are started in.
        appendonly: with an append-only file, written every second.
        backlog: an RDB file to begin with.
    """

    def __init__(self, environments: Environments, *, appendonly: bool = False, backlog: Path | None = None) -> None:
        self._environments, self._backlog = environments, backlog
        options = {"enable-debug-command": "local"}  # it loads the backlog
        self.server = RedisServer(environments.server, port=_free_port(), persist=appendonly, options=options)
        self._ending = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._ending as ending:
            ending.enter_context(self.server)
            folder = ending.enter_context(tempfile.TemporaryDirectory(prefix="peers-"))
            self.probe_path = Path(folder) / "probe"
            self.probe = Probe.create(self.probe_path)
            self.redis = redis.Redis(port=self.server.port or 0, socket_timeout=LOADING_S)
            ending.callback(self.redis.close)
            if self._backlog is not None:
                os.symlink(self._backlog, self.server.folder / "dump.rdb")
                self.redis.execute_command("DEBUG", "RELOAD", "NOSAVE")
            self._ending = ending.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.close()

    @property
    def url(self) -> str:
        """Of the server, by TCP."""
        return f"redis://127.0.0.1:{self.server.port}/0"

    def start(self, peer: str, verb: Any, **facts: Any) -> Process:
        """Start a process of *peer*; it is ended with this bench at the latest."""
        order = Order(peer=peer, verb=verb, url=self.url, probe=str(self.probe_path), **facts)
        command, variables = self._environments.command_of(peer_called(peer), json.dumps(asdict(order)))
        return self._ending.enter_context(Process(f"{peer} {verb}", command, variables))

    def ask(self, peer: str, verb: Any, *, within_s: float = ANSWER_S, **facts: Any) -> dict[str, Any]:
        """Start a process of *peer* and wait for its answer.

        Raises:
            FailedError: there was none in time: a peer that loses a task waits for its result for ever.
        """
        with self.start(peer, verb, **facts) as process:
            [told] = process.answers(within_s)
            return told

    def submit(self, peer: str, n: int, *, first: int = 0) -> float:
        """Submit *n* tasks by the peer's bulk call; returns tasks per second."""
        return n / float(self.ask(peer, "submit", n=n, first=first, bulk=True)["seconds"])

    def memory(self) -> int:
        """Bytes that Redis uses."""
        return int(self.redis.info("memory")["used_memory"])

    def watch_commands(self, seconds: float) -> tuple[int, int]:
        """How many commands are sent in so many seconds, and how many more are run inside scripts and functions."""
        ends, lines = time.monotonic() + seconds, bytearray()
        with socket.create_connection(("127.0.0.1", self.server.port or 0)) as watching:
            watching.sendall(b"MONITOR\r\n")
            while (left_s := ends - time.monotonic()) > 0:
                watching.settimeout(left_s)
                with contextlib.suppress(TimeoutError):
                    lines += watching.recv(1 << 20)
        told = [line for line in lines.split(b"\r\n") if line and line != b"+OK"]
        inside = sum(1 for line in told if _INSIDE.match(line))
        return len(told) - inside, inside

    def meter(self, workers: Sequence[Process]) -> Meter:
        """Measure from now on."""
        return Meter(self, workers)


class Process:
    """A process that tells its answers as lines of ``PEER`` and JSON. Use it with ``with``."""

    def __init__(self, what: str, command: Sequence[str], variables: Mapping[str, str]) -> None:
        self._what = what
        self._told, self._words = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with it
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONWARNINGS": "ignore"} | dict(variables), stdin=subprocess.DEVNULL,
            stdout=self._told, stderr=self._words, start_new_session=True,
        )  # fmt: skip
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def answers(self, timeout_s: float = ANSWER_S) -> list[dict[str, Any]]:
        """What it has told when it ends: at least one answer.

        Raises:
            FailedError: it told nothing, or nothing in time.
        """
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise FailedError(f"{self._what}: no answer within {timeout_s:.0f} s") from None
        self._told.seek(0)
        lines = [line.removeprefix("PEER ") for line in self._told if line.startswith("PEER ")]
        if not lines or self._process.returncode:
            raise self._failed()
        return [dict(json.loads(line)) for line in lines]

    def check(self) -> None:
        """Raise FailedError if it has ended."""
        if self._process.poll() is not None:
            raise self._failed()

    def _failed(self) -> FailedError:
        return FailedError(f"{self._what}: it ended with code {self._process.returncode}: {self.last_words()}")

    def last_words(self) -> str:
        """The last line that it wrote as an error."""
        self._words.seek(0)
        return (self._words.read().strip().splitlines() or ["not a word"])[-1][:300]

    def end(self) -> None:
        """End it and what it has started. Idempotent."""
        for number, within_s in ((signal.SIGTERM, ENDING_S), (signal.SIGKILL, 30.0)):
            if self._process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.pid, number)
                self._process.wait(within_s)
        self._told.close()
        self._words.close()

    def cpu_s(self) -> float:
        """Seconds of CPU that it has used, in all its threads."""
        return _cpu_s(self.pid)


class Meter:
    """What a server, some workers and everybody else used between two moments."""

    def __init__(self, bench: Bench, workers: Sequence[Process]) -> None:
        self._bench, self._workers = bench, workers
        self._commands = self._count_commands()
        self._before = self._read()

    def stop(self, tasks: int) -> dict[str, Any]:
        """Per task: µs of CPU of the workers (all together) and of Redis, and commands; and the seconds it took."""
        after = self._read()
        wall_s, redis_s, workers_s, all_s, own_s = (b - a for a, b in zip(self._before, after, strict=True))
        counts = {name: n - self._commands.get(name, 0) for name, n in self._count_commands().items()}
        by_command = {name: round(n / tasks, 2) for name, n in counts.items() if n / tasks >= 0.01}
        return {
            "seconds": wall_s,
            "redis_us": redis_s * 1e6 / tasks,
            "worker_us": workers_s * 1e6 / tasks,
            "commands": sum(counts.values()) / tasks,
            "by_command": dict(sorted(by_command.items(), key=lambda each: -each[1])),
            "others_cores": max(0.0, (all_s - redis_s - workers_s - own_s) / wall_s),
        }

    def _read(self) -> tuple[float, ...]:
        workers_s = sum(worker.cpu_s() for worker in self._workers)
        return time.perf_counter(), _cpu_s(self._bench.server.pid), workers_s, _busy_s(), time.process_time()

    def _count_commands(self) -> dict[str, int]:
        stats = self._bench.redis.info("commandstats")
        ours = ("info", "config|resetstat")
        return {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()
                if name.removeprefix("cmdstat_") not in ours}  # fmt: skip


def until(
    ready: Callable[[], Any], what: str, *, within_s: float, every_s: float = 0.001, alive: Sequence[Process] = ()
) -> None:
    """Return when *ready()*.

    Raises:
        FailedError: it was not ready in time, or one of *alive* has ended.
    """
    ends = time.monotonic() + within_s
    looked = 0
    while not ready():
        if time.monotonic() > ends:
            words = "; ".join(process.last_words() for process in alive)
            raise FailedError(f"{what}: not within {within_s:.0f} s: {words}")
        looked += 1
        if looked % 100 == 0:
            for process in alive:
                process.check()
        time.sleep(every_s)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _cpu_s(pid: int) -> float:
    """Of all its threads, to the nanosecond; 0 of a process that is gone."""
    used_ns = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # it has just ended
            used_ns += int(thread.read_text().split()[0])
    return used_ns / 1e9


def _busy_s() -> float:
    """Seconds of CPU that the whole machine has used, with what its host took away."""
    user, nice, system, _, _, *others = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(others)) * TICK_S
