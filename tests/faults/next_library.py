"""The function library as a later release may bring it: the same work under new names, loaded beside the first."""

from __future__ import annotations

import hashlib

from swarm_infrastructure.store import LIBRARY, Library, assemble

NAME = "swarm_v2"
PREFIX = NAME + "_"


def next_library() -> Library:
    """Built from this version's files; each function and the library have the next version's name."""
    built = assemble(lambda _file, text: text.replace(LIBRARY, NAME))
    digest = hashlib.sha256(built.source.encode()).hexdigest()
    source = built.source.replace(f"name={LIBRARY}", f"name={NAME}", 1).replace(built.digest, digest, 1)
    return Library(source, digest)
