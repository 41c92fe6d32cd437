"""Keeping leases: every claim of a process is renewed at a third of its lease, on a connection of its own.

A claim whose renewal was not confirmed for two thirds of its lease is treated as lost: its holder stops while the lease
still runs, so that nobody else can have begun. A refused renewal is lost at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog

from ..errors import SwarmError, UnavailableError
from .claims import Claim, ClaimDesk

__all__ = ["Lease", "LeaseKeeper"]

log = structlog.get_logger(__name__)

RENEW_AT = 1 / 3  # of the lease: two more tries before it is given up
LOST_KEPT = 10_000
LOST_AT = 2 / 3  # of the lease without a confirmed renewal: a third is left to stop in


@dataclass(slots=True, eq=False)
class Lease:
    """A claim that is being kept."""

    claim: Claim
    on_lost: Callable[[str], object] | None
    confirmed_at: float  #: monotonic; when the last renewal that was confirmed had been sent
    lost: str = ""  #: why the claim is lost; "" while it holds

    def lose(self, why: str) -> None:
        """Mark it lost and tell its holder, once."""
        if not self.lost:
            self.lost = why
            log.warning("claim lost", item=self.claim.item_id, agent=self.claim.agent_id, why=why)
            if self.on_lost is not None:
                try:
                    self.on_lost(why)
                except Exception:  # of the holder, and no reason to stop renewing for all the others
                    log.error("on_lost failed", item=self.claim.item_id, agent=self.claim.agent_id, exc_info=True)


class LeaseKeeper:
    """Renews the leases of a process; use it as ``async with``.

    Args:
        desk: where to renew.
    """

    def __init__(self, desk: ClaimDesk) -> None:
        self._desk = desk
        self._leases: dict[tuple[str, int], Lease] = {}
        self._lost: dict[str, None] = {}  # items of which a claim was lost here, the newest `LOST_KEPT`
        self._task: asyncio.Task[None] | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._shortest_s = math.inf  #: lease that the keeper reckons with while it sleeps

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="lease keeper")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [task for task in (self._task, self._renewal) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def keep(self, claim: Claim, on_lost: Callable[[str], object] | None = None) -> Lease:
        """Renew *claim* until `drop`; call *on_lost* with the reason if it can't be held."""
        lease = Lease(claim, on_lost, claim.taken_at)
        self._leases[claim.item_id, claim.token] = lease
        if claim.lease_s < self._shortest_s:
            self._arrived.set()  # the keeper may be asleep for longer than this lease lasts
        return lease

    def drop(self, claim: Claim) -> None:
        """Stop renewing *claim*: it has ended."""
        self._leases.pop((claim.item_id, claim.token), None)

    def find(self, item_id: str, token: int) -> Claim | None:
        """The claim on *item_id* with this *token*, if it is being kept."""
        lease = self._leases.get((item_id, token))
        return lease.claim if lease else None

    def of_item(self, item_id: str) -> Claim | None:
        """The newest claim on *item_id* that is being kept, whoever's it is; None if this process has lost one on it: then
        who asks may be who lost it."""
        if item_id in self._lost:
            return None
        return max(
            (lease.claim for (item, _), lease in self._leases.items() if item == item_id),
            key=lambda claim: claim.token, default=None,
        )  # fmt: skip

    @property
    def kept(self) -> int:
        """How many leases are being kept."""
        return len(self._leases)

    def held_by(self, agent_id: str) -> list[Claim]:
        """The claims kept for *agent_id*."""
        return [lease.claim for lease in self._leases.values() if lease.claim.agent_id == agent_id]

    async def run_once(self) -> int:
        """Renew what is due, give up what could not be renewed in time. Returns how many were renewed."""
        now = asyncio.get_running_loop().time()
        self._give_up(now)
        due = [
            lease for lease in self._leases.values() if now - lease.confirmed_at >= lease.claim.lease_s * RENEW_AT * 0.9
        ]
        if not due:
            return 0
        try:
            answers = await self._desk.renew([lease.claim for lease in due])
        except UnavailableError as error:
            log.warning("leases not renewed, trying again", leases=len(due), why=str(error))
            return 0
        renewed = 0
        for lease, why in zip(due, answers, strict=True):
            if not why:
                lease.confirmed_at = now
                renewed += 1
            elif (lease.claim.item_id, lease.claim.token) in self._leases:  # else it ended while we asked
                self._lose(lease, why)
        return renewed

    def _give_up(self, now: float) -> None:
        for lease in list(self._leases.values()):
            if now - lease.confirmed_at >= lease.claim.lease_s * LOST_AT:
                self._lose(lease, "it could not be renewed for two thirds of its lease")

    def _lose(self, lease: Lease, why: str) -> None:
        self.drop(lease.claim)
        self._lost[lease.claim.item_id] = None
        if len(self._lost) > LOST_KEPT:
            del self._lost[next(iter(self._lost))]
        lease.lose(why)

    async def _run(self) -> None:
        while True:
            self._arrived.clear()
            self._shortest_s = min((each.claim.lease_s for each in self._leases.values()), default=math.inf)
            with contextlib.suppress(TimeoutError):
                # a tick may be late by itself: 12 in a lease leave room for the renewal to be tried several times
                async with asyncio.timeout(self._shortest_s / 12 if self._leases else None):
                    await self._arrived.wait()
                    continue
            self._give_up(asyncio.get_running_loop().time())
            if self._leases and (self._renewal is None or self._renewal.done()):
                # on its own, so that a Redis that went silent can't keep us from giving up in time
                self._renewal = asyncio.create_task(self._renew_quietly(), name="renewal")

    async def _renew_quietly(self) -> None:
        try:
            await self.run_once()
        except SwarmError as error:  # not ours to decide: the claims run out, and their holders are told
            log.error("leases can't be renewed", why=str(error))
