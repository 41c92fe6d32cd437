"""Waits: what agents wait for that is no work: a lock that somebody else holds, a debate that is open.

Most waits are over at once and leave no trace. One that lasts longer than `RECORDED_AFTER_S` is written down, with the
locks that the waiting task holds meanwhile: from that `swarm why` sees who waits for whom, and whether they wait in a ring.
An entry is renewed while the wait lasts and ends by itself when its process dies. It is a note for people and nothing relies
on it: where it can't be written, the wait goes on all the same.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import orjson
import structlog

from ..errors import SwarmError
from ..keys import BoardKeys
from ..store import Store
from .claims import current_claim
from .clock import read_clock_ms

__all__ = ["RECORDED_AFTER_S", "Wait", "WaitKind", "Waits", "locks_in_hand"]

log = structlog.get_logger(__name__)

RECORDED_AFTER_S = 1.0  # shorter waits are how locks work
KEPT_S = 15.0  # an entry that was not renewed for so long belongs to a process that is gone; renewed at a third

WaitKind = str  # "lock" or "debate": what is waited for
_in_hand: ContextVar[tuple[tuple[str, int], ...]] = ContextVar("locks_in_hand", default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """One task of an agent that waits."""

    id: str
    agent_id: str
    kind: WaitKind
    name: str  #: of the lock or the debate
    since_ms: int  #: milliseconds since the epoch, on Redis' clock
    ends_ms: int  #: when the entry ends unless it is renewed
    item_id: str = ""  #: that the task works on, if any
    holding: tuple[tuple[str, int], ...] = ()  #: locks that the task holds meanwhile, with their tokens


def locks_in_hand() -> tuple[tuple[str, int], ...]:
    """Locks that the running task holds, with their tokens."""
    return _in_hand.get()


def take_in_hand(resource: str, token: int) -> None:
    """Remember that the running task holds a lock."""
    _in_hand.set((*_in_hand.get(), (resource, token)))


def let_go(resource: str, token: int) -> None:
    """The running task holds that lock no more."""
    _in_hand.set(tuple(each for each in _in_hand.get() if each != (resource, token)))


class Waits:
    """The waits of one board.

    Args:
        store: the Redis that holds the board.
        keys: of the board.
        after_s: how long a wait lasts before it is written down.
    """

    def __init__(self, store: Store, keys: BoardKeys, *, after_s: float = RECORDED_AFTER_S) -> None:
        self._store, self._keys = store, keys
        self.after_s = after_s
        self._forgetting: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def recorded(self, agent_id: str, kind: WaitKind, name: str) -> AsyncIterator[None]:
        """While its body waits for *name*, and takes long, that is known to others."""
        entry = secrets.token_urlsafe(6)
        written = asyncio.Event()
        claim = current_claim()
        facts = {
            "agent": agent_id, "kind": kind, "name": name, "item": claim.item_id if claim else "",
            "holding": [list(each) for each in locks_in_hand()],
        }  # fmt: skip
        task = asyncio.create_task(self._record(entry, facts, written), name=f"{agent_id} waits for {name}")
        try:
            yield
        finally:
            task.cancel()
            if written.is_set():  # not awaited: who has waited long enough goes on, or is being cancelled
                forget = asyncio.create_task(self._forget(task, entry))
                self._forgetting.add(forget)
                forget.add_done_callback(self._forgetting.discard)

    async def _record(self, entry: str, facts: Mapping[str, Any], written: asyncio.Event) -> None:
        await asyncio.sleep(self.after_s)
        since_ms = 0
        while True:
            written.set()
            try:
                now_ms = await read_clock_ms(self._store, self._keys)
                since_ms = since_ms or now_ms - round(self.after_s * 1000)
                row = {**facts, "since_ms": since_ms, "ends_ms": now_ms + round(KEPT_S * 1000)}
                await self._store.command("HSET", self._keys.waits, entry, orjson.dumps(row))
            except SwarmError as error:
                log.debug("a wait was not written down", name=facts["name"], why=str(error))
            await asyncio.sleep(KEPT_S / 3)

    async def _forget(self, recording: asyncio.Task[None], entry: str) -> None:
        await asyncio.gather(recording, return_exceptions=True)  # its last write may be on its way
        with contextlib.suppress(SwarmError):  # it ends by itself
            await self._store.command("HDEL", self._keys.waits, entry)

    async def list(self) -> list[Wait]:
        """Every wait that is written down, the longest first; those of processes that are gone are left out."""
        return await self._lasting(await self._store.command("HGETALL", self._keys.waits))

    async def _lasting(self, rows: Mapping[bytes, bytes]) -> builtins.list[Wait]:
        if not rows:
            return []
        now_ms = await read_clock_ms(self._store, self._keys)
        return sorted(
            (wait for wait in _read(rows) if wait.ends_ms > now_ms), key=lambda wait: (wait.since_ms, wait.id)
        )

    async def sweep(self) -> builtins.list[Wait]:
        """Drop the entries of processes that are gone. Returns the others, as `list` does."""
        rows = await self._store.command("HGETALL", self._keys.waits)
        lasting = await self._lasting(rows)
        gone = rows.keys() - {wait.id.encode() for wait in lasting}
        if gone:
            await self._store.command("HDEL", self._keys.waits, *gone)
        return lasting

    async def close(self) -> None:
        """Wait until what has ended is forgotten."""
        await asyncio.gather(*self._forgetting, return_exceptions=True)


def _read(rows: Mapping[bytes, bytes]) -> Iterable[Wait]:
    for name, text in rows.items():
        try:
            row = orjson.loads(text)
            yield Wait(
                id=name.decode(), agent_id=str(row["agent"]), kind=str(row["kind"]), name=str(row["name"]),
                since_ms=int(row["since_ms"]), ends_ms=int(row["ends_ms"]), item_id=str(row["item"]),
                holding=tuple((str(lock), int(token)) for lock, token in row["holding"]),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError):
            continue  # torn: it ends with the next sweep
