"""Every peer, by name. A new one is a file here with a class in it, and a line in `PEERS`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from importlib import import_module

from .base import Order, Peer

__all__ = ["GROUPS", "PEERS", "Order", "Peer", "expand", "peer_called"]

#: name → module of this folder and the class in it
PEERS = {
    "ours": "ours:Ours",
    "ours-50": "ours:OursFifty",
    "ours-alone": "ours:OursAlone",
    "ours-pipeline": "ours:OursPipeline",
    "ours-pipeline-alone": "ours:OursPipelineAlone",
    "bullmq-node": "bullmq_node:BullMQNode",
    "bullmq-py": "bullmq_py:BullMQ",
    "dramatiq": "dramatiq_peer:Dramatiq",
    "arq": "arq_peer:Arq",
    "huey": "huey_peer:Huey",
    "taskiq-list": "taskiq_peer:TaskiqList",
    "taskiq-stream": "taskiq_peer:TaskiqStream",
    "saq": "saq_peer:Saq",
    "streaq": "streaq_peer:Streaq",
    "celery": "celery_peer:Celery",
    "rq": "rq_peer:Rq",
}
#: what else may be asked for by one name
GROUPS = {
    "ours": ("ours", "ours-50", "ours-alone", "ours-pipeline", "ours-pipeline-alone"),
    "bullmq": ("bullmq-node", "bullmq-py"),
    "taskiq": ("taskiq-list", "taskiq-stream"),
}


def peer_called(name: str) -> Peer:
    """The peer of this name; none of its libraries is imported."""
    module, _, kind = PEERS[name].partition(":")
    peer: Peer = getattr(import_module(f".{module}", __name__), kind)()
    peer.name = name
    return peer


def expand(names: Iterable[str], known: Collection[str] = tuple(PEERS)) -> list[str]:
    """Names of those that are *known*, and of groups, as single names, each once.

    Raises:
        ValueError: there is no such peer; it names those that there are.
    """
    found: list[str] = []
    for name in names:
        if name not in known and name not in GROUPS:
            there = [*known, *(group for group in GROUPS if group not in known)]
            raise ValueError(f"peer: found {name!r}, needed one of {', '.join(there)}")
        found += [each for each in GROUPS.get(name, (name,)) if each not in found]
    return found
