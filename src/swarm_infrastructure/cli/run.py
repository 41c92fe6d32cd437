"""``swarm run``: run the swarm of a module or a file."""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError

if TYPE_CHECKING:
    from ..agents import Swarm

__all__ = ["load_swarm", "run"]


def run(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="module:attribute or path/to/file.py:attribute; a Swarm, or a function that gives one. "
            "The attribute is 'swarm' if none is named.",
        ),
    ],
    processes: Annotated[
        int, typer.Option("--processes", "-p", metavar="N", min=1, max=256, help="How many worker processes.")
    ] = 1,
    replace_board: Annotated[
        bool, typer.Option("--replace-board", help="Put its board in place of another one of the same name.")
    ] = False,
) -> int:
    """Run a swarm until Ctrl-C or SIGTERM; then it finishes what it has in hand.

    A second Ctrl-C does not wait for that. Workers that crash are started again.
    """
    # A worker process of the swarm is this same command line: whatever stands here happens in each of them too.
    from ..agents.supervisor import worker_seat

    swarm = load_swarm(target)
    if replace_board and worker_seat() is None:  # the first process did; a worker that comes back must not undo others
        swarm.replace_board = True
    ctrl_c = _CtrlC()
    swarm.run(processes=processes, watch=ctrl_c.watch)
    return 130 if ctrl_c.pressed else 0


class _CtrlC:
    """Notes a Ctrl-C and turns it into the SIGTERM that a swarm answers alike; the exit code tells them apart."""

    def __init__(self) -> None:
        self.pressed = False

    async def watch(self, _swarm: object) -> None:
        """Runs beside the workers, which have their own handlers of signals by now."""
        import asyncio

        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._press)
        await asyncio.Event().wait()

    def _press(self) -> None:
        self.pressed = True
        if callable(signal.getsignal(signal.SIGTERM)):  # else the workers have ended, and it would end us
            os.kill(os.getpid(), signal.SIGTERM)


def load_swarm(target: str) -> Swarm:
    """The swarm that *target* names.

    Raises:
        InvalidInputError: there is no such module, file or attribute, or it is no `Swarm`. What goes wrong inside of
            the module is raised as it is.
    """
    place, colon, attribute = target.rpartition(":")
    if not colon:
        place, attribute = target, ""
    if (not place or place.startswith(".")) and not place.startswith(("./", "../")):
        raise InvalidInputError("TARGET", found=target, needed="module:attribute or path/to/file.py:attribute")
    is_file = place.endswith(".py") or os.sep in place
    module = _load_file(place, target) if is_file else _load_module(place, target)
    return _swarm_in(module, attribute or "swarm", place)


def _load_module(name: str, target: str) -> ModuleType:
    _put_on_path(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it is there, and misses another one
        folder = name.replace(".", "/")
        hint = f"a file is named by its path: swarm run {folder}.py" if Path(f"{folder}.py").exists() else ""
        raise InvalidInputError(
            "TARGET", found=target, needed=f"a module; there is no {error.name!r} in {Path.cwd()} or the environment",
            step=hint,
        ) from error  # fmt: skip


def _load_file(name: str, target: str) -> ModuleType:
    path = Path(name).resolve()
    if not path.is_file():
        raise InvalidInputError("TARGET", found=target, needed=f"a file; there is no {path}")
    parts, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():  # a part of a package may import its neighbours as such
        parts.insert(0, folder.name)
        folder = folder.parent
    _put_on_path(Path.cwd())
    _put_on_path(folder)
    module = importlib.import_module(".".join(parts))
    loaded = Path(module.__file__ or "").resolve()
    if loaded != path:
        raise InvalidInputError(
            "TARGET",
            found=target,
            needed=f"a file whose name is not taken; {'.'.join(parts)!r} is {loaded}",
            step="rename it",
        )
    return module


def _put_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _swarm_in(module: ModuleType, attribute: str, place: str) -> Swarm:
    from ..agents import Swarm

    found: Any = module
    for name in attribute.split("."):
        if not hasattr(found, name):
            there = [name for name, value in vars(module).items() if isinstance(value, Swarm)]
            raise InvalidInputError(
                "TARGET", found=f"{place}:{attribute}", needed="the name of a Swarm in it",
                step=f"it has: {', '.join(there)}" if there else "write one there: swarm = Swarm([YourAgent])",
            )  # fmt: skip
        found = getattr(found, name)
    if isinstance(found, Swarm):
        return found
    named = f"{place}:{attribute}"
    if not callable(found) or inspect.iscoroutinefunction(found):
        kind = "an async function" if callable(found) else f"of type {type(found).__name__}"
        raise InvalidInputError("TARGET", found=named, needed=f"a Swarm, or a function that gives one; it is {kind}")
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError) as error:
        needed = f"a Swarm, or a function without arguments that gives one ({error})"
        raise InvalidInputError("TARGET", found=named, needed=needed) from error
    made = found()
    if not isinstance(made, Swarm):
        raise InvalidInputError("TARGET", found=named, needed=f"a Swarm; calling it gives type {type(made).__name__}")
    return made
