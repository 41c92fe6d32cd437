"""The desk where agents claim, and where claims end."""

from __future__ import annotations

import asyncio
import random as chance
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import orjson
import structlog

from ...errors import InvalidInputError, ItemNotFoundError, LibraryMismatchError, WrongStatusError
from ...keys import BoardKeys, check_id, check_name, lane_name
from ...store import Store
from ..items import read_item
from ..lifecycle import Board
from .endings import Endings
from .values import MOST_PER_CALL, Claim, Claimed, ClaimRequest, Ending, Hands, new_request
from .waiting import WaitingRoom

__all__ = ["ClaimDesk"]

log = structlog.get_logger(__name__)
Answer = TypeVar("Answer")


class ClaimDesk:
    """Claims of one board, for all agents of this process.

    Args:
        store: the Redis that holds the board.
        keys: of the board.
        board: its rules.
        random: source of jitter.
    """

    def __init__(self, store: Store, keys: BoardKeys, board: Board, *, random: chance.Random | None = None) -> None:
        self._store, self._keys, self._board = store, keys, board
        self._room = WaitingRoom(
            store, keys, ask=self._claim, hand_back=self._hand_back, random=random or chance.Random()
        )
        self._endings = Endings(store, keys, on_sent=self._room.wake_stopped)
        self._quarantines: dict[str, str] = {}  # lane → its quarantine
        self._late: set[asyncio.Task[Any]] = set()  # claims under way whose caller is gone
        self._clock = (0.0, 0)  # this process' monotonic clock, and Redis' (ms) at that time or later
        self._claim_keys = [
            keys.rules, keys.items, keys.payloads, keys.events, keys.counts,
            keys.fence, keys.gates, keys.held, keys.receipts, keys.errors, keys.failures, keys.escalations,
        ]  # fmt: skip
        self._reap_keys = [
            keys.rules, keys.items, keys.events, keys.counts, keys.held, keys.errors, keys.failures, keys.escalations,
        ]  # fmt: skip

    # -- lanes ------------------------------------------------------------------------------------------------------

    def lanes(
        self, section: str, *, statuses: Sequence[str] | None = None, capabilities: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """The lanes of *section* that an agent with these *capabilities* can claim from.

        Raises:
            UnknownSectionError: the board has no such section.
            WrongStatusError: it has no ready status, or not the one named.
        """
        found = self._board.section(section)
        wanted = tuple(map(str, statuses)) if statuses else tuple(found.ready)
        for status in wanted:
            if status not in found.ready:
                raise WrongStatusError(
                    f"(any in {section})",
                    found=f"status {status!r}",
                    needed=f"a ready one: {', '.join(found.ready) or 'none'}",
                )
        if not wanted:
            raise WrongStatusError(
                f"(any in {section})", found="a section without ready statuses", needed="a ready one"
            )
        tags = ("", *(check_name("capability", str(tag)) for tag in capabilities))
        return tuple(dict.fromkeys(lane_name(str(section), status, tag) for status in wanted for tag in tags))

    def quarantine_of(self, lane: str) -> str:
        """The lane where items of *lane* go when they wore out."""
        known = self._quarantines.get(lane)
        if known is None:
            section, _, requires = lane.split("/")
            known = self._quarantines[lane] = lane_name(section, self._board.quarantine, requires)
        return known

    def retry_of(self, lane: str) -> str:
        """The lane where items claimed from *lane* wait for their next attempt when one failed."""
        section, status, requires = lane.split("/")
        return lane_name(section, self._board.section(section).retry_status(status), requires)

    def _keys_of(self, lanes: Sequence[str]) -> list[str]:
        keys: list[str] = []
        for name in lanes:
            lane = self._keys.lane(name)
            keys += (lane.line, lane.timed, lane.bell, self._keys.lane(self.quarantine_of(name)).line)
        return keys

    # -- claiming ---------------------------------------------------------------------------------------------------

    async def claim(self, *requests: ClaimRequest) -> list[list[Claimed] | str]:
        """Ask once: what each of the requests gets now, in one round trip for requests with the same lanes.

        Returns:
            For each request what it got (possibly nothing), or, as a word, the gate that is shut for this agent.
        """
        if any((each.lanes, each.lease_s) != (requests[0].lanes, requests[0].lease_s) for each in requests):
            raise InvalidInputError("requests of one call", found="several lanes or leases", needed="the same for all")
        hands = await self._or_hand_back(
            self._claim(requests),
            lambda hands: [each for hand in hands.dealt if isinstance(hand, list) for each in hand],
        )
        return hands.dealt

    async def _or_hand_back(
        self, asking: Coroutine[Any, Any, Answer], got: Callable[[Answer], list[Claimed]]
    ) -> Answer:
        """The answer of *asking*; what it *got* is handed back if the caller is cancelled meanwhile."""
        task = asyncio.ensure_future(asking)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:

            def hand_back(done: asyncio.Task[Answer]) -> None:
                self._late.discard(done)
                if not done.cancelled() and done.exception() is None:
                    for each in got(done.result()):
                        self._endings.send(self.hand_back_of(each.claim, reason="the agent stopped"))

            self._late.add(task)
            task.add_done_callback(hand_back)
            raise

    async def _claim(self, requests: Sequence[ClaimRequest], after: tuple[Sequence[str], float] | None = None) -> Hands:
        """Claim for requests with the same lanes and lease: now, or *after* bells, or so many seconds (see `Store.call`)."""
        lanes, lease_s = requests[0].lanes, requests[0].lease_s
        args: list[Any] = [new_request(), int(lease_s * 1000)]
        room = MOST_PER_CALL
        for request in requests:
            most = max(0, min(request.most, room))
            room -= most
            args += (request.agent_id, request.role, most, request.most_held)
        asked_at = asyncio.get_running_loop().time()
        answer = await self._store.call("claim", [*self._claim_keys, *self._keys_of(lanes)], args, after=after)
        match answer:
            case [b"claimed", token, ends_ms, now_ms, due_ms, *rows] if len(rows) == len(requests):
                taken_at = self._time_of(int(now_ms), asked_at, waited=after is not None)
                due_s = (int(due_ms) - int(now_ms)) / 1000 if due_ms else None
                given = (int(token or 0), int(ends_ms), lease_s, taken_at)
                hands: list[list[Claimed] | str] = []
                for request, hand in zip(requests, rows, strict=True):
                    if isinstance(hand, bytes):
                        hands.append(hand.decode())
                        continue
                    found = [
                        self._claimed(name, record, payload, request.agent_id, *given)
                        for name, record, payload in zip(hand[0::3], hand[1::3], hand[2::3], strict=True)
                    ]
                    hands.append([each for each in found if each is not None])
                return Hands(hands, due_s)
            case [b"place", lane]:
                raise WrongStatusError("(any)", found=f"lane {lane.decode()!r}", needed="a ready place of the board")
            case _:
                raise LibraryMismatchError("claim", answer)

    def _time_of(self, now_ms: int, asked_at: float, *, waited: bool) -> float:
        """When on this process' clock Redis gave an answer at *now_ms* on its own; rather too early than too late, for
        leases are reckoned from it."""
        if not waited:
            self._clock = (asked_at, now_ms)
            return asked_at
        at, at_ms = self._clock
        passed_s = (now_ms - at_ms) / 1000
        return min(max(asked_at, at + passed_s), asyncio.get_running_loop().time())

    def _claimed(
        self,
        item_id: bytes,
        record: bytes,
        payload: bytes | None,
        agent_id: str,
        token: int,
        ends_at_ms: int,
        lease_s: float,
        taken_at: float,
    ) -> Claimed | None:
        """The claim that Redis gave, or None if what it holds can't be read: that goes to quarantine."""
        name, unreadable = item_id.decode(), ""
        try:
            if payload is None:
                raise InvalidInputError(f"payload of item {name!r}", found=None, needed="JSON", step="see: swarm audit")
            item = read_item(name, record, payload)
        except InvalidInputError as error:
            item, unreadable = read_item(name, record, None), str(error)
        claim = Claim(
            item_id=name,
            agent_id=agent_id,
            token=token,
            ends_at_ms=ends_at_ms,
            lease_s=lease_s,
            lane=item.claimed_from,
            taken_at=taken_at,
        )
        if not unreadable:
            return Claimed(claim=claim, item=item)
        log.error("an item can't be read, to quarantine", item=name, why=unreadable)
        self._endings.send(self.give_up_of(claim, unreadable))
        return None

    async def claim_item(
        self, item_id: str, agent_id: str, *, role: str = "", lease_s: float | None = None, lanes: Sequence[str] = (),
        delayed: bool = False,
    ) -> Claimed | None:  # fmt: skip
        """Claim one item by its id; None if it isn't ready, or somebody else holds it.

        Args:
            item_id: the item.
            agent_id: who claims it.
            role: of the agent, for the gates.
            lease_s: the section's, if None.
            lanes: where the item may be; looked up if not given.
            delayed: also if it waits for its time, as for its next attempt.

        Raises:
            ItemNotFoundError: there is no such item.
        """
        check_id("item id", item_id)
        check_id("agent id", agent_id)
        if not lanes:
            record = await self._store.command("HGET", self._keys.items, item_id)
            if record is None:
                raise ItemNotFoundError(item_id, self._board.name)
            lanes = (read_item(item_id, record, None).claimed_from,)
        section = self._board.section(lanes[0].split("/")[0])
        lease_s = section.lease_s if lease_s is None else lease_s
        asking = self._claim_item(
            item_id, ClaimRequest(agent_id=agent_id, role=role, lanes=tuple(lanes), lease_s=lease_s), delayed=delayed
        )
        return await self._or_hand_back(asking, lambda claimed: [claimed] if claimed else [])

    async def _claim_item(self, item_id: str, request: ClaimRequest, *, delayed: bool = False) -> Claimed | None:
        agent_id, lease_s = request.agent_id, request.lease_s
        taken_at = asyncio.get_running_loop().time()
        answer = await self._store.call(
            "claim_item",
            [*self._claim_keys, *self._keys_of(request.lanes)],
            [item_id, agent_id, request.role, int(lease_s * 1000), new_request(), "1" if delayed else ""],
        )
        match answer:
            case [b"claimed", token, ends_ms, record, payload]:
                given = (int(token), int(ends_ms), lease_s, taken_at)
                return self._claimed(item_id.encode(), record, payload, agent_id, *given)
            case [b"held" | b"lane" | b"delayed" | b"gate", _]:
                return None
            case [b"missing"]:
                raise ItemNotFoundError(item_id, self._board.name)
            case _:
                raise LibraryMismatchError("claim_item", answer)

    async def wait(self, request: ClaimRequest) -> list[Claimed]:
        """Wait until there is work for *request*: at least one item. Cancel it to stop waiting; nothing is held then.

        Agents that wait for the same lanes share one blocked connection and one call.
        """
        return await self._room.wait(request)

    # -- ending -----------------------------------------------------------------------------------------------------

    def end(self, ending: Ending) -> asyncio.Future[tuple[str, int]]:
        """End a claim; endings of the same moment travel in one call. Repeating it gives the first answer.

        Returns:
            What happened (completed, failed, quarantined, handed_back, revoked) and the item's new version.

        Raises:
            ClaimLostError: the claim no longer holds; nothing was written.
            WrongStatusError: the board allows no such step; the claim still holds.
            VersionConflictError: the payload was made from an older version; the claim still holds.
            InvalidInputError: the payload is larger than the section takes; the claim still holds.
            StoreUnavailableError: no answer; it may have been accepted, and can be repeated.
        """
        return self._endings.send(ending)  # a caller that is cancelled does not take it back: it is on its way

    def hand_back_of(self, claim: Claim, *, reason: str, delay_s: float = 0.0) -> Ending:
        """The ending that hands *claim* back, as if it had not been taken."""
        return Ending(
            claim=claim, kind="hand_back", to=claim.lane, quarantine=self.quarantine_of(claim.lane),
            reason=reason, delay_s=delay_s,
        )  # fmt: skip

    def give_up_of(self, claim: Claim, why: str) -> Ending:
        """The ending that sends *claim*'s item to quarantine."""
        line = {"kind": "failed", "agent": claim.agent_id, "token": str(claim.token), "error": why[:4096]}
        return Ending(
            claim=claim, kind="give_up", to=self.retry_of(claim.lane), quarantine=self.quarantine_of(claim.lane),
            reason=" ".join(why.split())[:300], error=orjson.dumps({"at_ms": int(time.time() * 1000)} | line),
        )  # fmt: skip

    async def _hand_back(self, claimed: Sequence[Claimed]) -> None:
        """Give claims back that nobody wants any more; where that fails their leases run out."""
        sent = [self._endings.send(self.hand_back_of(each.claim, reason="the agent stopped")) for each in claimed]
        for answer in await asyncio.gather(*sent, return_exceptions=True):
            if isinstance(answer, BaseException):
                log.warning("not handed back, its lease runs out", why=str(answer))

    # -- renewing ---------------------------------------------------------------------------------------------------

    async def renew(self, claims: Sequence[Claim]) -> list[str]:
        """Push the ends of leases out, in one call.

        Returns:
            For each claim "" if it holds for another ``lease_s``, else why it is lost.
        """
        lost: list[str] = []
        for start in range(0, len(claims), MOST_PER_CALL):
            part = claims[start : start + MOST_PER_CALL]
            lanes = list(dict.fromkeys(claim.lane for claim in part))
            args: list[Any] = []
            for claim in part:
                args += (claim.item_id, claim.token, lanes.index(claim.lane) + 1, int(claim.lease_s * 1000))
            answers = await self._store.call(
                "renew",
                [
                    self._keys.rules,
                    self._keys.items,
                    self._keys.gates,
                    *(self._keys.lane(lane).timed for lane in lanes),
                ],
                args,
                leases=True,
                once=True,
            )
            for answer in answers:
                match answer:
                    case b"renewed":
                        lost.append("")
                    case [b"lost", why]:
                        lost.append(why.decode())
                    case _:
                        raise LibraryMismatchError("renew", answer)
        return lost

    async def reap(self, lanes: Sequence[str], *, most: int = 50) -> int:
        """Take back what ran out in *lanes*; returns how many leases ended. Every claim does this for its own lanes."""
        answer = await self._store.call(
            "reap",
            [*self._reap_keys, *self._keys_of(lanes)],
            [most],
        )
        match answer:
            case [b"place", lane]:
                raise WrongStatusError("(any)", found=f"lane {lane.decode()!r}", needed="a ready place of the board")
            case [ended, _]:
                return int(ended)
            case _:
                raise LibraryMismatchError("reap", answer)

    async def close(self) -> None:
        """Stop serving; whoever waits is cancelled. Endings that were asked for are sent first."""
        await self._room.close()
        await asyncio.gather(*self._late, return_exceptions=True)
        await asyncio.sleep(0)  # claims that came too late join the endings now
        await self._endings.flush()
