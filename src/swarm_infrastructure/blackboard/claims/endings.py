"""Endings: completions, failures and hand-backs of one process that fall together travel in one call.

Each caller is answered when its own ending is in Redis. While a call is under way the next ones gather, so that the
batches grow with the load by themselves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from ...errors import (
    ClaimLostError,
    InvalidInputError,
    LibraryMismatchError,
    RefusedError,
    SwarmError,
    VersionConflictError,
    WrongStatusError,
)
from ...keys import BoardKeys
from ...store import Store
from .values import MOST_PER_CALL, Ending

__all__ = ["Endings"]

log = structlog.get_logger(__name__)


class Endings:
    """Sends endings.

    Args:
        store: the Redis that holds the board.
        keys: of the board.
        on_sent: called after each batch.
    """

    def __init__(self, store: Store, keys: BoardKeys, *, on_sent: Callable[[], None]) -> None:
        self._store, self._keys, self._on_sent = store, keys, on_sent
        self._waiting: deque[tuple[Ending, asyncio.Future[tuple[str, int]]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._end_keys = [
            keys.rules, keys.items, keys.payloads, keys.events, keys.counts,
            keys.gates, keys.held, keys.results, keys.errors, keys.tallies,
        ]  # fmt: skip

    def send(self, ending: Ending) -> asyncio.Future[tuple[str, int]]:
        """Send *ending* with those of the same moment; see `ClaimDesk.end` for what the future brings."""
        answer: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_retrieve)
        self._waiting.append((ending, answer))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send_all(), name="endings")
        return answer

    async def _send_all(self) -> None:
        await asyncio.sleep(0)  # let the endings of this turn join
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_PER_CALL))]
            groups: dict[tuple[Any, ...], list[int]] = {}
            try:
                for i, (ending, _) in enumerate(batch):
                    groups.setdefault(_alike(ending), []).append(i)
                answers = await self._store.call("end_claims", *self._end_call(batch, groups))
                order = [i for rows in groups.values() for i in rows]
                for i, answer in zip(order, answers, strict=True):
                    _settle(batch[i][0], answer, batch[i][1])
            except Exception as error:
                if not isinstance(error, SwarmError):
                    log.error("endings could not be sent", endings=len(batch), exc_info=True)
                for _, future in batch:  # whatever it was: nobody may be left waiting
                    if not future.done():
                        future.set_exception(error)
            else:
                self._on_sent()

    async def flush(self) -> None:
        """Wait until everything that was given to `send` is sent."""
        if self._task is not None and not self._task.done():
            await self._task

    def _end_call(
        self, batch: Sequence[tuple[Ending, Any]], groups: dict[tuple[Any, ...], list[int]]
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
                ending = batch[i][0]
                args += (ending.claim.item_id, ending.claim.token, ending.version or "", ending.payload, ending.result)
        return keys, args


def _retrieve(answer: asyncio.Future[Any]) -> None:
    """Look at the outcome: a failed ending of a caller that went away is nothing to warn of."""
    if not answer.cancelled():
        answer.exception()


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


def _settle(ending: Ending, answer: Any, future: asyncio.Future[tuple[str, int]]) -> None:
    if future.done():
        return
    claim = ending.claim
    error: RefusedError | LibraryMismatchError
    match answer:
        case [(b"completed" | b"failed" | b"quarantined" | b"handed_back" | b"revoked") as kind, version]:
            future.set_result((kind.decode(), int(version)))
            return
        case [b"lost", why]:
            error = ClaimLostError(claim.item_id, claim.agent_id, claim.token, why.decode())
        case [b"missing"]:
            error = ClaimLostError(claim.item_id, claim.agent_id, claim.token, "the item was deleted")
        case [b"step", before, after]:
            error = WrongStatusError(
                claim.item_id, found=before.decode(), needed=f"a status from which the board allows {after.decode()!r}"
            )
        case [b"place", lane]:
            error = WrongStatusError(
                claim.item_id, found=f"to be sent to {lane.decode()!r}", needed="a place of the board"
            )
        case [b"version", found]:
            error = VersionConflictError(claim.item_id, found=int(found), needed=ending.version)
        case [b"large", size, limit]:
            error = InvalidInputError(
                f"payload of item {claim.item_id!r}", found=f"{size} bytes", needed=f"at most {limit}"
            )
        case _:
            error = LibraryMismatchError("end_claims", answer)
    future.set_exception(error)
