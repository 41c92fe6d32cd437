"""What a peer has to be able to do: submit, be waited for, work, and be seen to have finished.

A peer runs in a process of its own, in its own environment (see ``process.py``). Its module is imported by the runner
as well, which has none of its libraries: so it imports them inside its methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

__all__ = ["Order", "Peer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a process is to do. It comes as one JSON argument."""

    peer: str
    verb: Literal["work", "submit", "latency"]
    url: str  #: of Redis
    probe: str = ""  #: path of the file that bodies are counted in
    slot: int = 0  #: of that file
    n: int = 0  #: tasks to submit, or samples to take
    bulk: bool = False  #: submit by the peer's bulk call
    first: int = 0  #: number of the first task, so that two orders on one server do not name two tasks alike
    most_s: float = 60.0  #: for which samples are taken
    idle: bool = False  #: the worker will mostly wait: a peer that polls does so at its quickest


class Peer:
    """One peer. Its methods may be plain or async; they run in one process, after `open`."""

    name: str = ""
    environment: ClassVar[str] = "peers"  #: see ``environments.py``
    language: ClassVar[str] = "python"
    packages: ClassVar[Sequence[str]] = ()  #: whose versions the report gives
    pace: ClassVar[int] = 3_000  #: tasks a second, roughly: so much work is laid before it that it is busy for seconds
    bodies: ClassVar[int] = 1  #: that a task has
    durable: ClassVar[bool] = True  #: a task survives its worker's death
    #: the settings that suited it best, found by measuring; they stand in the report
    settings: ClassVar[str] = ""
    delivery: ClassVar[str] = ""  #: what is promised of a task, with these settings
    bulk: ClassVar[str] = ""  #: its bulk call; "" if it has none, and many single ones are sent at once
    most_waiting: ClassVar[int] = 100_000  #: its greatest backlog; most would take many minutes to submit a million
    workloads: ClassVar[frozenset[str]] = frozenset(
        {"drain", "scaling", "aof", "enqueue", "latency", "idle", "memory", "growth"}
    )  #: those it takes part in

    def __init__(self) -> None:
        self.order: Order

    # -- in the peer's own process ----------------------------------------------------------------------------------

    def open(self) -> Any:
        """Connect as a producer."""

    def submit(self, payload: dict[str, Any]) -> Any:
        """Submit one task, as users do; return when Redis has it."""
        raise NotImplementedError

    def submit_many(self, payloads: Sequence[dict[str, Any]]) -> Any:
        """Submit up to 1,000 tasks in the peer's quickest way; return when Redis has them."""
        raise NotImplementedError

    def submit_and_wait(self, payload: dict[str, Any]) -> Any:
        """Submit one task and return when its result is here."""
        raise NotImplementedError

    def work(self) -> Any:
        """Be a worker until the process is ended. The body of each task is `probe.tick`."""
        raise NotImplementedError

    # -- in the runner, on a plain redis-py client ------------------------------------------------------------------

    def is_drained(self, redis: Any, n: int) -> bool:
        """Whether *n* tasks are done as far as Redis knows: none waits, none is in work, each has its result."""
        raise NotImplementedError
