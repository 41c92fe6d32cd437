"""Locks: the sole right to something that has a name, as a claim on an item that stands for it.

One mechanism: a lock is an item on a small board of its own, ``free`` or ``held``. It is renewed like any claim, free
again when its holder dies, and its token fences a holder that froze.
"""

from __future__ import annotations

import asyncio
import random as chance
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..errors import ClaimLostError, LockNotAcquiredError
from ..keys import check_id
from .claims import LEAST_LEASE_S, Claim
from .items import Submission, check_seconds
from .lifecycle import Board, Section
from .waits import Waits, let_go, take_in_hand

if TYPE_CHECKING:
    from .blackboard import Blackboard

__all__ = ["Lock", "Locks", "lock_board", "lock_board_name"]

LOCKS = "locks"


def lock_board_name(board: str) -> str:
    """Name of the board that the locks of a board stand on."""
    return f"{board}.locks"


def lock_board(name: str) -> Board:
    """The board that locks stand on. A lock never wears out: its holders may crash as often as they like."""
    return Board(
        name=name,
        sections={
            LOCKS: Section(
                ready={"free": "held"}, resting=("dropped",), then={"held": "locks/free"}, max_attempts=0, max_crashes=0
            )
        },
        steps={"held": frozenset({"free", "dropped"})},
        final=frozenset({"dropped"}),
    )


class Locks:
    """The locks of one board."""

    def __init__(self, desk: Blackboard) -> None:
        self._desk = desk

    @property
    def desk(self) -> Blackboard:
        """The board that they stand on."""
        return self._desk

    async def take(self, resource: str, agent_id: str, *, lease_s: float) -> Claim | str:
        """Try once: the claim, or who holds it."""
        claimed = None
        item = await self._desk.find(resource)
        if item is None:
            await self._desk.submit(Submission(id=resource, section=LOCKS, payload={}), agent=agent_id)
        claimed = await self._desk.claims.claim_item(resource, agent_id, lease_s=lease_s, lanes=(f"{LOCKS}/free/",))
        if claimed is None:
            item = await self._desk.find(resource)
            return item.holder if item else ""
        self._desk.leases.keep(claimed.claim)
        return claimed.claim

    async def give(self, claim: Claim) -> None:
        """Free it; `ClaimLostError` if it was lost meanwhile."""
        try:
            await self._desk.complete(claim)
        finally:
            self._desk.leases.drop(claim)

    async def renew(self, claim: Claim) -> bool:
        """Push its end out; False if it is lost."""
        [why] = await self._desk.claims.renew([claim])
        return not why

    def holds(self, claim: Claim) -> bool:
        """Whether it is still being kept."""
        return self._desk.leases.find(claim.item_id, claim.token) is not None


class Lock:
    """One holder's lock; use it as ``async with``. Made by `Blackboard.acquire_lock`."""

    def __init__(
        self,
        table: Callable[[], Awaitable[Locks]],
        resource: str,
        agent_id: str,
        *,
        timeout_s: float,
        lease_s: float,
        waits: Waits | None = None,
    ) -> None:
        self.resource, self.agent_id = check_id("resource", resource), check_id("agent id", agent_id)
        check_seconds("timeout of a lock", timeout_s)
        check_seconds("lease_s of a lock", lease_s, least=LEAST_LEASE_S)
        self._table, self._timeout_s, self._lease_s, self._waits = table, timeout_s, lease_s, waits
        self._locks: Locks | None = None
        self.claim: Claim | None = None  #: while it is held; its token fences outside systems too

    async def __aenter__(self) -> Self:
        self._locks = await self._table()
        ends_at = asyncio.get_running_loop().time() + self._timeout_s
        got = await self._locks.take(self.resource, self.agent_id, lease_s=self._lease_s)
        if not isinstance(got, Claim):
            waiting = self._waits.recorded(self.agent_id, "lock", self.resource) if self._waits else nullcontext()
            async with waiting:
                got = await self._wait(self._locks, got, ends_at)
        self.claim = got
        take_in_hand(self.resource, got.token)
        return self

    async def _wait(self, locks: Locks, holder: str, ends_at: float) -> Claim:
        loop, pause_s = asyncio.get_running_loop(), 0.01
        while True:
            left_s = ends_at - loop.time()
            if left_s <= 0:
                raise LockNotAcquiredError(self.resource, self.agent_id, holder=holder, waited_s=self._timeout_s)
            await asyncio.sleep(min(left_s, pause_s * (0.5 + chance.random())))
            pause_s = min(pause_s * 2, 0.25)
            got = await locks.take(self.resource, self.agent_id, lease_s=self._lease_s)
            if isinstance(got, Claim):
                return got
            holder = got

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        claim, self.claim = self.claim, None
        if claim is None or self._locks is None:
            return
        let_go(self.resource, claim.token)
        try:
            await self._locks.give(claim)
        except ClaimLostError:
            if error is None:  # what was done inside was not protected to the end: say so
                raise

    @property
    def held(self) -> bool:
        """Whether this holder still has it."""
        return self.claim is not None and self._locks is not None and self._locks.holds(self.claim)

    async def extend(self, additional_s: float = 60.0) -> bool:
        """Make its lease last at least so many seconds from now; False, and nothing changed, if it is not held any more."""
        check_seconds("additional time", additional_s, least=LEAST_LEASE_S)
        if self.claim is None or self._locks is None:
            return False
        longer = Claim(**{name: getattr(self.claim, name) for name in self.claim.__slots__} | {"lease_s": additional_s})
        return await self._locks.renew(longer)
