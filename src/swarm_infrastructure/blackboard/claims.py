"""Claims: an agent's sole right to work on an item until a lease ends.

::

    agent A ── claim ──▶ token 7 ── renew, renew ── complete(7) ──▶ accepted
                              └─ froze; its lease ran out ── complete(7) ──▶ lost, nothing is written
    agent B ────────────────────── claim ──▶ token 8 ── complete(8) ──▶ accepted

What may be trusted: Redis' clock and nobody else's; the token, which grows with each claim of an item, even across a
failover that forgot some. An item's handler may run twice (after a crash there is no way to know how far it got), but
exactly one ending of it is accepted.

What happens when a part fails: a crashed agent's items come back when their lease ends, to whoever claims next. A lost
reply is asked for again and gives the first answer. While Redis is away nothing can be claimed or ended, and a holder
that could not renew for two thirds of its lease treats the claim as lost and stops before it can do harm.

One `ClaimDesk` serves all agents of a process: their claims and endings that fall together travel together, and each
caller is answered when its own are in Redis.
"""

from __future__ import annotations

import asyncio
import random as chance
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

import orjson
import structlog

from ..errors import (
    ClaimLostError,
    InvalidInputError,
    ItemNotFoundError,
    LibraryMismatchError,
    RefusedError,
    SwarmError,
    UnavailableError,
    VersionConflictError,
    WrongStatusError,
)
from ..keys import BoardKeys, check_id, check_name, lane_name
from ..store import Store
from .items import Item, check_seconds, read_item
from .lifecycle import Board

__all__ = ["Claim", "ClaimDesk", "ClaimRequest", "Claimed", "Ending"]

log = structlog.get_logger(__name__)
Answer = TypeVar("Answer")

LEAST_LEASE_S = 0.05  # shorter ones end on the way to the agent
POLL_S = 5.0  # how long an idle agent trusts the doorbell; a lost ring costs this much latency and no work
MOST_PER_CALL = 500  # a call of 500 items keeps Redis busy for 5-10 ms, as long as others should have to wait
Kind = Literal["complete", "fail", "give_up", "hand_back", "revoke"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One agent's sole right to work on one item, until its lease ends."""

    item_id: str
    agent_id: str
    token: int  #: grows with every claim of the item; a write that carries an older one is refused
    ends_at_ms: int  #: milliseconds since the epoch, on Redis' clock
    lease_s: float
    lane: str  #: the lane it was claimed from: section/status/requires
    taken_at: float  #: this process' monotonic clock when the claim was asked for: never later than on Redis


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A claim and the item it holds, as it was when claimed."""

    claim: Claim
    item: Item


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """What an agent would take."""

    agent_id: str
    role: str
    lanes: tuple[str, ...]  #: in no order: priority, then order of arrival decide
    most: int = 1
    most_held: int = 0  #: claims that the agent may hold at once; 0: any number
    lease_s: float = 30.0

    def __post_init__(self) -> None:
        check_id("agent id", self.agent_id)
        if self.role:
            check_name("role", self.role)
        check_seconds("lease_s", self.lease_s, least=LEAST_LEASE_S)
        for what, number, least in (("most", self.most, 1), ("most_held", self.most_held, 0), ("lanes", len(self.lanes), 1)):
            if type(number) is not int or number < least:
                raise InvalidInputError(what, found=number, needed=f"a whole number of at least {least}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a claim ends."""

    claim: Claim
    kind: Kind
    to: str  #: lane it goes to
    quarantine: str  #: lane it goes to if it wore out
    delay_s: float = 0.0
    reason: str = ""
    trace: str = ""
    error: bytes = b""  #: a line of JSON for the item's error list
    version: int = 0  #: the version that the payload was made from
    payload: bytes = b""  #: the whole new payload, if it changed
    result: bytes = b""

    def __post_init__(self) -> None:
        check_seconds(f"delay_s of item {self.claim.item_id!r}", self.delay_s)


@dataclass(slots=True, eq=False)
class _Waiting:
    request: ClaimRequest
    answer: asyncio.Future[list[Claimed]]


@dataclass(slots=True)
class _Queue:
    """The requests for one set of lanes, and the task that serves them."""

    lanes: tuple[str, ...]
    lease_s: float
    waiting: deque[_Waiting] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    stopped: int = 0  #: of those who wait: who may not claim now


def new_request() -> str:
    """An id for one call: a repeat carries the same one and gets the first answer."""
    return secrets.token_urlsafe(6)


class ClaimDesk:
    """Claims of one board, for all agents of this process.

    Args:
        store: the Redis that holds the board.
        keys: of the board.
        board: its rules.
        random: source of jitter.
    """

    def __init__(
        self, store: Store, keys: BoardKeys, board: Board, *, random: chance.Random | None = None
    ) -> None:
        self._store, self._keys, self._board = store, keys, board
        self._endings: deque[tuple[Ending, asyncio.Future[tuple[str, int]]]] = deque()
        self._ending_task: asyncio.Task[None] | None = None
        self._queues: dict[tuple[tuple[str, ...], float], _Queue] = {}
        self._late: set[asyncio.Task[Any]] = set()  # claims under way whose caller is gone
        self._random = random or chance.Random()
        self._claim_keys = [
            keys.rules, keys.items, keys.payloads, keys.events, keys.counts,
            keys.fence, keys.gates, keys.held, keys.receipts, keys.errors,
        ]  # fmt: skip
        self._end_keys = [
            keys.rules, keys.items, keys.payloads, keys.events, keys.counts,
            keys.gates, keys.held, keys.results, keys.errors, keys.tallies,
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
                    f"(any in {section})", found=f"status {status!r}", needed=f"a ready one: {', '.join(found.ready) or 'none'}"
                )
        if not wanted:
            raise WrongStatusError(f"(any in {section})", found="a section without ready statuses", needed="a ready one")
        tags = ("", *(check_name("capability", str(tag)) for tag in capabilities))
        return tuple(dict.fromkeys(lane_name(str(section), status, tag) for status in wanted for tag in tags))

    def quarantine_of(self, lane: str) -> str:
        """The lane where items of *lane* go when they wore out."""
        section, _, requires = lane.split("/")
        return lane_name(section, self._board.quarantine, requires)

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
        lanes, lease_s = requests[0].lanes, requests[0].lease_s
        if any((each.lanes, each.lease_s) != (lanes, lease_s) for each in requests):
            raise InvalidInputError("requests of one call", found="several lanes or leases", needed="the same for all")
        answers, _ = await self._or_hand_back(
            self._claim(requests, lanes, lease_s),
            lambda answer: [each for hand in answer[0] if isinstance(hand, list) for each in hand],
        )
        return answers

    async def _or_hand_back(self, asking: Coroutine[Any, Any, Answer], got: Callable[[Answer], list[Claimed]]) -> Answer:
        """The answer of *asking*; what it *got* is handed back if the caller is cancelled meanwhile."""
        task = asyncio.ensure_future(asking)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:

            def hand_back(done: asyncio.Task[Answer]) -> None:
                self._late.discard(done)
                if not done.cancelled() and done.exception() is None:
                    for each in got(done.result()):
                        self._send(self.hand_back_of(each.claim, reason="the agent stopped"))

            self._late.add(task)
            task.add_done_callback(hand_back)
            raise

    async def _claim(
        self, requests: Sequence[ClaimRequest], lanes: tuple[str, ...], lease_s: float
    ) -> tuple[list[list[Claimed] | str], float | None]:
        args: list[Any] = [new_request(), int(lease_s * 1000)]
        room = MOST_PER_CALL
        for request in requests:
            most = max(0, min(request.most, room))
            room -= most
            args += (request.agent_id, request.role, most, request.most_held)
        taken_at = asyncio.get_running_loop().time()
        answer = await self._store.call("claim", [*self._claim_keys, *self._keys_of(lanes)], args)
        match answer:
            case [b"claimed", token, ends_ms, now_ms, due_ms, *rows] if len(rows) == len(requests):
                due_s = (int(due_ms) - int(now_ms)) / 1000 if due_ms else None
                hands: list[list[Claimed] | str] = []
                for request, hand in zip(requests, rows, strict=True):
                    if isinstance(hand, bytes):
                        hands.append(hand.decode())
                        continue
                    rows_of = zip(hand[0::3], hand[1::3], hand[2::3], strict=True)
                    found = [self._claimed(*row, request.agent_id, token, ends_ms, lease_s, taken_at) for row in rows_of]
                    hands.append([each for each in found if each is not None])
                return hands, due_s
            case [b"place", lane]:
                raise WrongStatusError("(any)", found=f"lane {lane.decode()!r}", needed="a ready place of the board")
            case _:
                raise LibraryMismatchError("claim", answer)

    def _claimed(
        self,
        item_id: bytes,
        record: bytes,
        payload: bytes | None,
        agent_id: str,
        token: bytes,
        ends_ms: bytes,
        lease_s: float,
        taken_at: float,
    ) -> Claimed | None:
        """The claim that Redis gave, or None if what it holds can't be read: that goes to quarantine."""
        item = read_item(item_id.decode(), record, None)
        claim = Claim(
            item_id=item.id,
            agent_id=agent_id,
            token=int(token),
            ends_at_ms=int(ends_ms),
            lease_s=lease_s,
            lane=item.claimed_from,
            taken_at=taken_at,
        )
        try:
            if payload is None:
                raise InvalidInputError(f"payload of item {item.id!r}", found=None, needed="JSON", step="see: swarm audit")
            return Claimed(claim=claim, item=read_item(item.id, record, payload))
        except InvalidInputError as error:
            log.error("an item can't be read, to quarantine", item=item.id, why=str(error))
            self._send(self.give_up_of(claim, str(error)))
            return None

    async def claim_item(
        self, item_id: str, agent_id: str, *, role: str = "", lease_s: float | None = None, lanes: Sequence[str] = ()
    ) -> Claimed | None:
        """Claim one item by its id; None if it isn't ready, or somebody else holds it.

        Args:
            item_id: the item.
            agent_id: who claims it.
            role: of the agent, for the gates.
            lease_s: the section's, if None.
            lanes: where the item may be; looked up if not given.

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
        asking = self._claim_item(item_id, ClaimRequest(agent_id=agent_id, role=role, lanes=tuple(lanes), lease_s=lease_s))
        return await self._or_hand_back(asking, lambda claimed: [claimed] if claimed else [])

    async def _claim_item(self, item_id: str, request: ClaimRequest) -> Claimed | None:
        agent_id, lease_s = request.agent_id, request.lease_s
        taken_at = asyncio.get_running_loop().time()
        answer = await self._store.call(
            "claim_item",
            [*self._claim_keys, *self._keys_of(request.lanes)],
            [item_id, agent_id, request.role, int(lease_s * 1000), new_request()],
        )
        match answer:
            case [b"claimed", token, ends_ms, record, payload]:
                return self._claimed(item_id.encode(), record, payload, agent_id, token, ends_ms, lease_s, taken_at)
            case [b"held" | b"lane" | b"delayed" | b"gate", _]:
                return None
            case [b"missing"]:
                raise ItemNotFoundError(item_id, self._board.name)
            case _:
                raise LibraryMismatchError("claim_item", answer)

    # -- waiting for work -------------------------------------------------------------------------------------------

    async def wait(self, request: ClaimRequest) -> list[Claimed]:
        """Wait until there is work for *request*: at least one item. Cancel it to stop waiting; nothing is held then.

        Agents that wait for the same lanes share one blocked connection and one call.
        """
        key = (request.lanes, request.lease_s)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(request.lanes, request.lease_s)
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        queue.waiting.append(waiting)
        queue.arrived.set()
        if queue.task is None or queue.task.done():
            queue.task = asyncio.create_task(self._serve(queue), name=f"claims {request.lanes[0]}")
            queue.task.add_done_callback(partial(_tell_waiting, queue))
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            if waiting in queue.waiting:
                queue.waiting.remove(waiting)
            answer = waiting.answer
            if answer.done() and not answer.cancelled() and answer.exception() is None:  # dealt in the same moment
                await self._hand_back(answer.result())
            raise

    async def _hand_back(self, claimed: Sequence[Claimed]) -> None:
        """Give claims back that nobody wants any more; where that fails their leases run out."""
        sent = [self._send(self.hand_back_of(each.claim, reason="the agent stopped")) for each in claimed]
        for answer in await asyncio.gather(*sent, return_exceptions=True):
            if isinstance(answer, BaseException):
                log.warning("not handed back, its lease runs out", why=str(answer))

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

    async def _serve(self, queue: _Queue) -> None:
        bell: asyncio.Task[str] | None = None
        try:
            while True:
                queue.arrived.clear()
                dealing = asyncio.create_task(self._deal(queue))
                try:
                    due_s, stopped = await asyncio.shield(dealing)
                    queue.stopped = stopped
                except asyncio.CancelledError:  # closing: what was claimed for those who went away is handed back
                    await asyncio.wait({dealing}, timeout=self._store.timeout_s)
                    raise
                if not queue.waiting:
                    if bell is None:
                        return
                elif bell is None and stopped < len(queue.waiting):
                    bell = asyncio.create_task(self._listen(queue))
                patience_s = min(self._poll_s(queue.lease_s), 1.0 if stopped else 3600.0)
                if due_s is not None and stopped < len(queue.waiting):  # wake when a lease ends, but not all processes at once
                    patience_s = min(patience_s, max(due_s, 0.0) + 0.002 + self._random.random() * 0.05)
                arrived = asyncio.create_task(queue.arrived.wait())
                try:
                    await asyncio.wait(
                        {arrived, bell} if bell else {arrived}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    arrived.cancel()
                if bell is not None and bell.done():
                    rung, bell = bell.result(), None
                    if rung and all(each.answer.done() for each in queue.waiting):  # nobody here needs it any more
                        await self._pass_on(rung)
        finally:
            if bell is not None:
                bell.cancel()

    async def _deal(self, queue: _Queue) -> tuple[float | None, int]:
        """Claim for all who wait. Returns when the next lease or delay ends (s), and how many may not claim now."""
        asked, due_s, stopped = [each for each in queue.waiting if not each.answer.done()], None, 0
        for start in range(0, len(asked), MOST_PER_CALL):
            part = asked[start : start + MOST_PER_CALL]
            try:
                hands, due_s = await self._claim([each.request for each in part], queue.lanes, queue.lease_s)
            except UnavailableError as error:
                log.warning("can't claim, waiting", why=str(error))
                await asyncio.sleep(self._random.random())
                return 0.0, 0
            except SwarmError as error:
                for waiting in part:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(error)
                        queue.waiting.remove(waiting)
                continue
            for waiting, hand in zip(part, hands, strict=True):
                stopped += isinstance(hand, str)
                if isinstance(hand, list) and hand:
                    if waiting.answer.done():  # it went away while we asked
                        await self._hand_back(hand)
                    else:
                        queue.waiting.remove(waiting)
                        waiting.answer.set_result(hand)
            if [] in hands:
                break  # nothing is left
        return due_s, stopped

    async def _listen(self, queue: _Queue) -> str:
        bells = [self._keys.lane(lane).bell for lane in queue.lanes]
        try:
            return await self._store.wait_for_bell(bells, self._poll_s(queue.lease_s))
        except UnavailableError:
            await asyncio.sleep(0.2 + 0.3 * self._random.random())
            return ""

    async def _pass_on(self, bell: str) -> None:
        try:
            await self._store.command("LPUSH", bell, "1", once=True)
        except UnavailableError as error:
            log.debug("a doorbell was lost; idle agents look again by themselves", why=str(error))

    def _poll_s(self, lease_s: float) -> float:
        # at most half a lease: so whoever idles learns of every claim before its lease can end, and wakes when it does
        return min(POLL_S, lease_s / 2) * (0.75 + 0.25 * self._random.random())

    # -- ending -----------------------------------------------------------------------------------------------------

    async def end(self, ending: Ending) -> tuple[str, int]:
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
        return await self._send(ending)  # a caller that is cancelled does not take the ending back: it is on its way

    def _send(self, ending: Ending) -> asyncio.Future[tuple[str, int]]:
        answer: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_retrieve)
        self._endings.append((ending, answer))
        if self._ending_task is None or self._ending_task.done():
            self._ending_task = asyncio.create_task(self._send_endings(), name="endings")
        return answer

    async def _send_endings(self) -> None:
        await asyncio.sleep(0)  # let the endings of this turn join
        while self._endings:
            batch = [self._endings.popleft() for _ in range(min(len(self._endings), MOST_PER_CALL))]
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
                self._wake_stopped()

    def _wake_stopped(self) -> None:
        for queue in self._queues.values():  # who held as many as it may can claim again
            if queue.stopped:
                queue.arrived.set()

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
                [self._keys.rules, self._keys.items, self._keys.gates, *(self._keys.lane(lane).timed for lane in lanes)],
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
        keys = self._keys
        answer = await self._store.call(
            "reap",
            [keys.rules, keys.items, keys.events, keys.counts, keys.held, keys.errors, *self._keys_of(lanes)],
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
        for queue in self._queues.values():
            for waiting in queue.waiting:
                waiting.answer.cancel()
        tasks = [queue.task for queue in self._queues.values() if queue.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._late, return_exceptions=True)
        self._queues.clear()
        await asyncio.sleep(0)  # claims that came too late join the endings now
        if self._ending_task is not None and not self._ending_task.done():
            await self._ending_task


def _tell_waiting(queue: _Queue, task: asyncio.Task[None]) -> None:
    """Serving ended: by an error that nobody foresaw, if somebody still waits."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("claiming stopped", lanes=queue.lanes, why=repr(error))
        for waiting in queue.waiting:
            if not waiting.answer.done():
                waiting.answer.set_exception(error)
        queue.waiting.clear()


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
            error = WrongStatusError(claim.item_id, found=f"to be sent to {lane.decode()!r}", needed="a place of the board")
        case [b"version", found]:
            error = VersionConflictError(claim.item_id, found=int(found), needed=ending.version)
        case [b"large", size, limit]:
            error = InvalidInputError(f"payload of item {claim.item_id!r}", found=f"{size} bytes", needed=f"at most {limit}")
        case _:
            error = LibraryMismatchError("end_claims", answer)
    future.set_exception(error)
