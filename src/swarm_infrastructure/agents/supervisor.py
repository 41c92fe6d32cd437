"""The supervisor: several worker processes, started again when they crash.

A worker process is this same command line, with ``SWARM_WORKER`` saying which one it is. So scripts and ``swarm run``
work alike, nothing has to be pickled, and a restarted worker reads the code anew.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import structlog

from ..errors import ConfigurationError
from ..failure_recovery import RetryPolicy, backoff_s

__all__ = ["Supervisor", "WorkerSeat", "worker_seat"]

log = structlog.get_logger(__name__)

RESTARTS = RetryPolicy(base_delay=0.5, max_delay=30.0)
STEADY_S = 30.0  # a worker that lived so long crashed by itself, not at its start: the backoff begins anew
CONFIG_ERROR = 3  # exit code: starting again would fail again


@dataclass(frozen=True, slots=True)
class WorkerSeat:
    """Which worker process this is."""

    index: int  #: from 1
    lifeline: int  #: a pipe from the supervisor, which closes when it dies


def worker_seat() -> WorkerSeat | None:
    """The seat that a supervisor gave this process, or None if it is nobody's worker."""
    index, lifeline = os.environ.get("SWARM_WORKER"), os.environ.get("SWARM_LIFELINE")
    return WorkerSeat(int(index), int(lifeline)) if index and lifeline else None


@dataclass(slots=True)
class _Child:
    index: int
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    crashes: int = 0
    pids: list[int] = field(default_factory=list)


class Supervisor:
    """Keeps a number of worker processes alive.

    Args:
        processes: how many.
        data_dir: of the private Redis, so that workers find the same one wherever they run.
    """

    def __init__(self, processes: int, data_dir: Path) -> None:
        self._children = [_Child(index) for index in range(1, processes + 1)]
        self._data_dir = data_dir
        self._random = Random()
        self._stopping = False
        self._lifeline: tuple[int, int] | None = None
        self.restarts = 0  #: workers started again after a crash

    @property
    def pids(self) -> list[int]:
        """The worker processes that are alive."""
        return [child.process.pid for child in self._children if child.process and child.process.poll() is None]

    async def run(self) -> None:
        """Start the workers, and start those again that crash. Ends when all have left by themselves.

        Raises:
            ConfigurationError: a worker could not start because of its configuration.
        """
        self._lifeline = os.pipe()
        try:
            await asyncio.gather(*(self._keep(child) for child in self._children))
        finally:
            for descriptor in self._lifeline:
                with suppress(OSError):
                    os.close(descriptor)

    def tell_to_stop(self, number: int = signal.SIGTERM) -> None:
        """Pass a signal on to every worker."""
        self._stopping = True
        for child in self._children:
            if child.process is not None and child.process.poll() is None:
                child.process.send_signal(number)

    async def _keep(self, child: _Child) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            self._start(child)
            process = child.process
            assert process is not None
            code = await asyncio.to_thread(process.wait)
            if self._stopping or code == 0:
                return
            if code == CONFIG_ERROR:
                self.tell_to_stop()
                raise ConfigurationError(f"worker {child.index} can't start; its message stands above")
            child.crashes = 1 if loop.time() - child.started_at > STEADY_S else child.crashes + 1
            pause_s = backoff_s(child.crashes, RESTARTS, self._random)
            self.restarts += 1
            log.warning("worker ended, starting it again", worker=child.index, why=_why(code), in_s=round(pause_s, 2))
            await asyncio.sleep(pause_s)

    def _start(self, child: _Child) -> None:
        assert self._lifeline is not None
        reading, _ = self._lifeline
        environment = os.environ | {
            "SWARM_WORKER": str(child.index),
            "SWARM_LIFELINE": str(reading),
            "SWARM_DATA_DIR": str(self._data_dir),
        }
        # a session of its own: Ctrl-C in the terminal reaches us alone, and we pass it on once
        child.process = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]], env=environment, pass_fds=(reading,), start_new_session=True
        )
        child.started_at = asyncio.get_running_loop().time()
        child.pids.append(child.process.pid)


def _why(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"
    return f"exit code {code}"
