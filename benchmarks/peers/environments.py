"""The environments that the peers run in: made when they are first needed, and again when what they hold has changed.

They lie beside ``.venv``, as folders ``.venv-peers*`` of the repository that git ignores. Peers whose requirements
exclude each other are kept apart; this runtime runs in the environment of whoever started the runner.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .adapters import Peer

__all__ = ["Environments", "MissingError"]

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
PYTHONS = {
    "peers": (".venv-peers", "requirements.txt"),
    "arq": (".venv-peers-arq", "requirements-arq.txt"),
    "pipelines": (".venv-peers-pipelines", "requirements-pipelines.txt"),
}
NODE = ".venv-peers-node"
HEADER = "#include <hiredis/hiredis.h>\nint main(void) { return 0; }\n"


class MissingError(Exception):
    """Something has to be installed first; the message says what, and how."""


@dataclass
class Environments:
    """What has been prepared, by name: ``ours``, those of `PYTHONS`, ``node``, ``ceiling``."""

    repository: Path = REPOSITORY
    pythons: dict[str, Path] = field(default_factory=lambda: {"ours": Path(sys.executable)})
    ceiling: Path | None = None  #: the C client
    server: str = "redis"  #: kind of the servers, as `RedisServer` names it

    def prepare(self, names: Collection[str]) -> None:
        """Make the environments of these names.

        Raises:
            MissingError: a program or a header is not installed; nothing has been made then.
        """
        check(names)
        for name, (folder, requirements) in PYTHONS.items():
            if name in names:
                self.pythons[name] = self._python(folder, HERE / requirements)
        if "node" in names:
            self._node()
        if "ceiling" in names:
            self.ceiling = self._compile()

    def command_of(self, peer: Peer, order: str) -> tuple[list[str], Mapping[str, str]]:
        """The command that starts a process of this peer with an order, and the variables that it needs."""
        if peer.environment == "node":
            script = HERE / "adapters" / f"{peer.name.replace('-', '_')}.js"
            return ["node", str(script), order], {"NODE_PATH": str(self.repository / NODE / "node_modules")}
        return [str(self.pythons[peer.environment]), "-m", "peers.process", order], {}

    def versions(self, environment: str, packages: Sequence[str]) -> dict[str, str]:
        """Package → version, as installed in an environment."""
        if environment == "node":
            find = "for (const p of process.argv.slice(1)) console.log(p, require(p + '/package.json').version)"
            command = ["node", "-e", find, *packages]
            variables = {"NODE_PATH": str(self.repository / NODE / "node_modules")}
        else:
            find = "import sys, importlib.metadata as m\nfor p in sys.argv[1:]: print(p, m.version(p))"
            command, variables = [str(self.pythons[environment]), "-c", find, *packages], {}
        told = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True).stdout
        return dict(line.split() for line in told.splitlines())

    def _python(self, folder: str, requirements: Path) -> Path:
        place = self.repository / folder
        python = place / "bin" / "python"
        if not _is_ready(place, requirements):
            _say(f"setting up {folder}")
            venv.create(place, with_pip=True, clear=True)
            (place / ".gitignore").write_text("*\n")
            install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(requirements)]
            subprocess.run([str(python), *install], check=True)
            _mark_ready(place, requirements)
        return python

    def _node(self) -> None:
        place, lock = self.repository / NODE, HERE / "package-lock.json"
        if not _is_ready(place, lock):
            _say(f"setting up {NODE}")
            place.mkdir(exist_ok=True)
            (place / ".gitignore").write_text("*\n")
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / name, place / name)
            quiet = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel", "error"]
            subprocess.run(["npm", "ci", *quiet], cwd=place, check=True)
            _mark_ready(place, lock)

    def _compile(self) -> Path:
        place, source = self.repository / ".venv-peers-ceiling", HERE / "ceiling.c"
        program = place / "ceiling"
        if not _is_ready(place, source):
            place.mkdir(exist_ok=True)
            (place / ".gitignore").write_text("*\n")
            subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source), "-lhiredis"], check=True)
            _mark_ready(place, source)
        return program


def check(names: Collection[str]) -> None:
    """Raise MissingError if a program or header that these environments need is not installed."""
    missing: dict[str, str] = {}
    if shutil.which("redis-server") is None:
        missing["redis-server"] = ""
    if "ceiling" in names:
        if shutil.which("gcc") is None:
            missing |= {"gcc": "ceiling", "libhiredis-dev": "ceiling"}
        elif subprocess.run(["gcc", "-E", "-"], input=HEADER, text=True, capture_output=True).returncode:
            missing["libhiredis-dev"] = "ceiling"
    if "node" in names:
        for program in ("node", "npm"):
            if shutil.which(program) is None:
                missing["nodejs" if program == "node" else program] = "bullmq-node"
    if missing:
        leave_out = " ".join(dict.fromkeys(part for part in missing.values() if part))
        step = (
            f', or leave them out: make bench-peers WITHOUT="{leave_out}"'
            if leave_out and all(missing.values())
            else ""
        )
        raise MissingError(f"not installed: {', '.join(missing)}; on Debian: apt install {' '.join(missing)}{step}")


def _digest(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()


def _is_ready(place: Path, source: Path) -> bool:
    mark = place / ".ready"
    return mark.exists() and mark.read_text() == _digest(source)


def _mark_ready(place: Path, source: Path) -> None:
    (place / ".ready").write_text(_digest(source))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
