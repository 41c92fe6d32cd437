"""The function library ``swarm_v1``: assembled from ``lua/``, loaded where it is absent, checked by its digest.

The files in ``lua/shared/`` come first, in the order of their numbers, then one file for each function, in a block of its
own: a chunk of Lua has room for 200 local names. A server that holds another build under the same name is refused: two
builds that change the same records differently would be worse than a worker that doesn't start.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

__all__ = ["LIBRARY", "PREFIX", "Library", "assemble"]

LIBRARY = "swarm_v1"
PREFIX = LIBRARY + "_"
_READER = re.compile(r"^register\('(\w+)',.*\{ 'no-writes' \}\)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Library:
    """An assembled library."""

    source: str  #: what FUNCTION LOAD takes
    digest: str  #: SHA-256 of the Lua files, in hex
    readers: frozenset[str] = frozenset()  #: functions that write nothing, by their bare names


def _sources() -> list[tuple[str, str]]:
    root = files("swarm_infrastructure.store") / "lua"
    shared = sorted((root / "shared").iterdir(), key=lambda each: each.name)
    functions = sorted((each for each in root.iterdir() if each.name.endswith(".lua")), key=lambda each: each.name)
    return [(each.name, each.read_text("utf-8")) for each in [*shared, *functions] if each.name.endswith(".lua")]


def _block(text: str) -> str:
    return f"do\n{text}end"


def assemble(edit: Callable[[str, str], str] | None = None) -> Library:
    """The library of this version of the package.

    Args:
        edit: called with each file's name and text, gives the text to use; for tests that break a guard on purpose.
    """
    texts = [(name, edit(name, text) if edit else text) for name, text in _sources()]
    body = "\n".join(f"-- file: {name}\n{text if name[0].isdigit() else _block(text)}" for name, text in texts)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return Library(
        f"#!lua name={LIBRARY}\nlocal LIBRARY_DIGEST = '{digest}'\n{body}", digest, frozenset(_READER.findall(body))
    )


@lru_cache(maxsize=1)
def shipped() -> Library:
    """`assemble`, once per process."""
    return assemble()
