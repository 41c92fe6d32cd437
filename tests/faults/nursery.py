"""The nursery: a process that has imported everything and forks workers, each in a session of its own, within milliseconds.

The fault tests kill hundreds of workers; to start Python for each would take most of their time. As a script it reads one
line of JSON for each worker to start (its words and its environment) and writes one for each that began or ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Nursed:
    """A worker process that a nursery started; hurt it as you would a `subprocess.Popen`."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery, self.pid = nursery, pid

    @property
    def returncode(self) -> int | None:
        return self._nursery.codes.get(self.pid)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        with self._nursery.news:
            if not self._nursery.news.wait_for(lambda: self.returncode is not None, timeout):
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended, and we have not heard of it yet
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Nursery:
    """Starts workers that run ``main()`` of *module*, a script in this folder."""

    def __init__(self, module: str) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), module]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self.codes: dict[int, int] = {}
        self.news = threading.Condition()
        self._begun: list[int] = []
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()

    def start(self, words: Sequence[str], environment: Mapping[str, str]) -> Nursed:
        assert self._process.stdin is not None
        line = json.dumps({"words": list(words), "environment": dict(environment)})
        with self.news:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
            assert self.news.wait_for(lambda: self._begun, 30), "the nursery does not answer"
            return Nursed(self, self._begun.pop())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._listening.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            with self.news:
                if "begun" in told:
                    self._begun.append(told["begun"])
                else:
                    self.codes[told["ended"]] = told["code"]
                self.news.notify_all()


def serve(module: str) -> None:
    """Fork a worker for each line; ends with its standard input."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    work = __import__(module).main
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    rest = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [], 1.0)
        if woken in ready:
            os.read(woken, 4096)
        _tell_who_ended()
        if 0 not in ready:
            continue
        data = os.read(0, 1 << 16)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            told = json.loads(line)
            pid = os.fork()
            if not pid:
                _become_worker(work, told, (woken, wake))
            _say(begun=pid)


def _become_worker(work: Any, told: dict[str, Any], descriptors: Sequence[int]) -> None:
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in descriptors:
            os.close(descriptor)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.environ.clear()
        os.environ.update(told["environment"])
        sys.argv[1:] = told["words"]
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def _tell_who_ended() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        _say(ended=pid, code=os.waitstatus_to_exitcode(status), at=time.time())


def _say(**facts: Any) -> None:
    os.write(1, json.dumps(facts).encode() + b"\n")


if __name__ == "__main__":
    serve(sys.argv[1])
