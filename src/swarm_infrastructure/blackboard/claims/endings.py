"""Endings: completions, failures and hand-backs of one process that fall together travel in one call.

See `Batches` for how they gather; endings that are alike share the facts of their group within a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from ...errors import (
    ClaimLostError,
    InvalidInputError,
    LibraryMismatchError,
    VersionConflictError,
    WrongStatusError,
)
from ...keys import BoardKeys
from ...store import Store
from ...store.batches import Batches
from .values import MOST_PER_CALL, Ending

__all__ = ["Endings"]

log = structlog.get_logger(__name__)
_ENDED = {kind.encode(): kind for kind in ("completed", "failed", "quarantined", "handed_back", "revoked")}


class Endings:
    """Sends endings.

    Args:
        store: the Redis that holds the board.
        keys: of the board.
        on_sent: called after each batch.
    """

    def __init__(self, store: Store, keys: BoardKeys, *, on_sent: Callable[[], None]) -> None:
        self._store, self._keys, self._on_sent = store, keys, on_sent
        self._batches: Batches[Ending, tuple[str, int]] = Batches(
            "endings", self._send_batch, most=MOST_PER_CALL, at_once=2
        )
        self._end_keys = [
            keys.rules, keys.items, keys.payloads, keys.events, keys.counts,
            keys.gates, keys.held, keys.results, keys.errors, keys.tallies,
        ]  # fmt: skip

    def send(self, ending: Ending) -> asyncio.Future[tuple[str, int]]:
        """Send *ending* with those of the same moment; see `ClaimDesk.end` for what the future brings."""
        return self._batches.send(ending)

    async def flush(self) -> None:
        """Wait until everything that was given to `send` is sent."""
        await self._batches.flush()

    async def _send_batch(self, batch: Sequence[Ending]) -> list[tuple[str, int] | Exception]:
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, ending in enumerate(batch):
            groups.setdefault(_alike(ending), []).append(i)
        answers = await self._store.call("end_claims", *self._end_call(batch, groups))
        order = [i for rows in groups.values() for i in rows]
        told: list[tuple[str, int] | Exception] = [("", 0)] * len(batch)
        for i, answer in zip(order, answers, strict=True):
            told[i] = _read(batch[i], answer)
        self._on_sent()
        return told

    def _end_call(
        self, batch: Sequence[Ending], groups: dict[tuple[Any, ...], list[int]]
    ) -> tuple[list[str], list[Any]]:
        keys, args = list(self._end_keys), list[Any]()
        index: dict[str, int] = {}

        def lane(name: str) -> int:
            at = index.get(name)
            if at is None:
                at = index[name] = len(index) + 1
                found = self._keys.lane(name)
                keys.extend((found.line, found.timed, found.bell))
            return at

        for alike, rows in groups.items():
            kind, start, to, quarantine, delay_ms, reason, trace, error = alike
            args += (kind, lane(start), lane(to), lane(quarantine), delay_ms, reason, trace, error, len(rows))
            for i in rows:
                ending = batch[i]
                args += (ending.claim.item_id, ending.claim.token, ending.version or "", ending.payload, ending.result)
        return keys, args


def _alike(ending: Ending) -> tuple[Any, ...]:
    return (
        ending.kind,
        ending.claim.lane,
        ending.to,
        ending.quarantine,
        round(ending.delay_s * 1000),
        ending.reason,
        ending.trace,
        ending.error,
    )


def _read(ending: Ending, answer: Any) -> tuple[str, int] | Exception:
    ended = _ENDED.get(answer[0]) if isinstance(answer, list) else None
    if ended is not None:
        return ended, int(answer[1])
    claim = ending.claim
    match answer:
        case [b"lost", why]:
            return ClaimLostError(claim.item_id, claim.agent_id, claim.token, why.decode())
        case [b"missing"]:
            return ClaimLostError(claim.item_id, claim.agent_id, claim.token, "the item was deleted")
        case [b"step", before, after]:
            return WrongStatusError(
                claim.item_id, found=before.decode(), needed=f"a status from which the board allows {after.decode()!r}"
            )
        case [b"place", lane]:
            return WrongStatusError(
                claim.item_id, found=f"to be sent to {lane.decode()!r}", needed="a place of the board"
            )
        case [b"version", found]:
            return VersionConflictError(claim.item_id, found=int(found), needed=ending.version)
        case [b"large", size, limit]:
            return InvalidInputError(
                f"payload of item {claim.item_id!r}", found=f"{size} bytes", needed=f"at most {limit}"
            )
        case _:
            return LibraryMismatchError("end_claims", answer)
