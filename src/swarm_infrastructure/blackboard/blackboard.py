"""The blackboard: items of one board, and every verb on them.

`Blackboard` puts the parts together: `ClaimDesk` (claims and endings), `LeaseKeeper` (renewals), `EventLog` (history),
`AgentRegistry` (who works here), `Locks`, `Waits` (who waits for what). The calls of the product document (``write``,
``read``, ``query_by_status``, …) are doors to the same functions that agents use.
"""

from __future__ import annotations

import asyncio
import random as chance
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import orjson

from ..errors import (
    BoardMismatchError,
    ClaimLostError,
    InvalidInputError,
    ItemNotFoundError,
    LibraryMismatchError,
    VersionConflictError,
    WrongStatusError,
)
from ..keys import BoardKeys, check_id, check_name, lane_name
from ..store import Store
from ..telemetry import current_trace
from .arrivals import Arrivals
from .changes import TRIES, Changes
from .claims import MOST_PER_CALL, Claim, ClaimDesk, Claimed, ClaimRequest, Ending
from .events import Event, EventLog
from .items import (
    DEFAULT_PRIORITY,
    Item,
    Payload,
    Submission,
    Submitted,
    clean_text,
    dump_json,
    dump_payload,
    merge,
    one_line,
    read_rows,
)
from .leases import LeaseKeeper
from .lifecycle import Board, Place
from .locks import Lock, Locks, lock_board, lock_board_name
from .queries import Queries, text_of
from .registry import AgentRegistry
from .similarity import FLAG, content_hash, similarity, sketch
from .submissions import Intake
from .waits import Waits

__all__ = ["Blackboard", "Likeness"]

Patch = Mapping[str, Any] | Callable[[dict[str, Any]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """An item whose text is like another's."""

    item: Item
    similarity: float  #: 0 to 1


class Blackboard:
    """One board in Redis. Use it as ``async with Blackboard(store, NEWS) as blackboard``.

    Args:
        store: an opened `Store`.
        board: the rules; registered in Redis when it is entered.
        namespace: swarms with different namespaces on one Redis don't see each other.
        replace_board: put this board in place of another one of its name (see `BoardMismatchError`).
        dead_after_s: an agent without a heartbeat for so long is shown offline.
        random: source of jitter.
    """

    def __init__(
        self,
        store: Store,
        board: Board,
        *,
        namespace: str = "default",
        replace_board: bool = False,
        dead_after_s: float = 45.0,
        random: chance.Random | None = None,
    ) -> None:
        self.store, self.board, self.namespace = store, board, namespace
        self.keys = BoardKeys(namespace, board.name)
        self.claims = ClaimDesk(store, self.keys, board, random=random)
        self.leases = LeaseKeeper(self.claims)
        self.events = EventLog(store, self.keys)
        self.queries = Queries(store, self.keys, board)
        self.agents = AgentRegistry(self, dead_after_s=dead_after_s)
        self._intake = Intake(store, self.keys, board)
        self._changes = Changes(store, self.keys, board, find=self.find, leases=self.leases)
        self.waits = Waits(store, self.keys)
        self._arrivals = Arrivals(store, self.keys, board, self.events)
        self._locks: Locks | None = None
        self._destinations: dict[tuple[str, Place | str | None, str], str] = {}  # asked for → lane: few, asked often
        self._replace_board = replace_board
        self._random = random
        self._closing = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._register()
        await self._closing.enter_async_context(self.leases)
        self._closing.push_async_callback(self.claims.close)
        self._closing.push_async_callback(self.waits.close)
        self._closing.push_async_callback(self._arrivals.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._closing.aclose()

    async def _register(self) -> None:
        args: list[str] = [self.board.digest(), "1" if self._replace_board else "0"]
        for field, value in self.board.rules().items():
            args += (field, value)
        answer = await self.store.call("register_board", [self.keys.rules, self.keys.counts], args)
        match answer:
            case [b"registered" | b"known"]:
                return
            case [b"differs", found]:
                raise BoardMismatchError(self.board.name, found=found.decode(), needed=self.board.digest())
            case [b"occupied", lane]:
                raise BoardMismatchError(
                    self.board.name, found="in use", needed=self.board.digest(), blocking=lane.decode()
                )
            case _:
                raise LibraryMismatchError("register_board", answer)

    # -- putting items on the board -----------------------------------------------------------------------------------

    async def submit(self, *submissions: Submission, agent: str = "") -> list[Submitted]:
        """Put items on the board; each id and each content hash is accepted once, whoever submits it.

        Up to 500 items travel in one call.

        Returns:
            One answer per submission, in order.

        Raises:
            UnknownSectionError, InvalidInputError: one of them can't stand where it should; none was written.
            SectionFullError: a section is at its cap, and takes as many of them as it has room for. Those that were
                accepted stay; submitted again, they are answered as duplicates of themselves.
        """
        return await self._intake.submit(submissions, agent)

    async def write(
        self,
        section: str,
        item_id: str,
        data: Payload,
        check_duplicate: bool = True,
        *,
        status: str | None = None,
        requires: str = "",
        priority: int = DEFAULT_PRIORITY,
        delay_s: float = 0.0,
    ) -> bool:
        """Put one item on the board.

        Args:
            section: where.
            item_id: unique on the board.
            data: the payload; its ``status`` is used if the section has such a status and none is named here.
            check_duplicate: refuse it if an item with the same content hash was ever accepted. The hash is the payload's
                ``content_hash``, else made from its title, content and source, else from the whole payload.
            status: where in the section's life it starts; the section's entry status by default.
            requires: the capability an agent must have to claim it.
            priority: 0 (first) to 9 (last).
            delay_s: seconds before it can be claimed.

        Returns:
            True if it was accepted, False if the id or the content is on the board already.
        """
        payload = orjson.loads(dump_payload(data, f"payload of item {item_id!r}"))
        found = self.board.section(str(section))
        named = payload.get("status")
        if status is None and isinstance(named, str) and named in found.statuses:
            status = named
        mark = _hash_of(payload) if check_duplicate else ""
        [answer] = await self.submit(
            Submission(
                id=item_id, section=str(section), payload=payload, status=status, requires=requires,
                priority=priority, delay_s=delay_s, content_hash=mark,
            )
        )  # fmt: skip
        return answer.accepted

    # -- reading ------------------------------------------------------------------------------------------------------

    async def find(self, item_id: str) -> Item | None:
        """The item, or None."""
        return (await self.find_many([item_id]))[0]

    async def get(self, item_id: str) -> Item:
        """The item; `ItemNotFoundError` if there is none."""
        item = await self.find(item_id)
        if item is None:
            raise ItemNotFoundError(item_id, self.board.name)
        return item

    async def find_many(self, item_ids: Sequence[str]) -> list[Item | None]:
        """Items by id, in the order given; None where there is none."""
        items: list[Item | None] = []
        for start in range(0, len(item_ids), MOST_PER_CALL):
            part = [check_id("item id", each) for each in item_ids[start : start + MOST_PER_CALL]]
            items += read_rows(part, await self.store.call("read_items", self.keys.whole_items, part))
        return items

    async def read(self, section: str, item_id: str) -> dict[str, Any] | None:
        """The item's payload with its ``id``, ``status`` and place, or None if it is not in this section."""
        self.board.section(str(section))
        item = await self.find(item_id)
        return item.as_dict() if item is not None and item.section == section else None

    async def read_all(self, section: str, status: str | None = None) -> list[dict[str, Any]]:
        """Every item of a section, as `read` gives it."""
        return [item.as_dict() async for item in self.queries.items(str(section), status)]

    async def errors(self, item_id: str) -> list[dict[str, Any]]:
        """What went wrong with the item, oldest first: failures, crashes, and who was at it."""
        text = await self.store.command("HGET", self.keys.errors, check_id("item id", item_id))
        return [orjson.loads(line) for line in text.split(b"\n")] if text else []

    async def history(self, item_id: str) -> list[Event]:
        """The item's events, oldest first."""
        item = await self.get(item_id)
        return await self.events.history(item_id, item.event)

    async def find_similar(self, section: str, content: str, threshold: float = 0.85) -> list[dict[str, Any]]:
        """Items of a section whose text is like *content*, most alike first, with their ``similarity`` (0 to 1).

        Lexical: finds near-copies, not paraphrases.
        """
        return await self.queries.find_similar(str(section), content, threshold)

    async def recognise(self, item_id: str, text: str, *, threshold: float = FLAG) -> list[Likeness]:
        """Lay a text down beside those recognised before it, and learn which of them it is like, most alike first.

        Of two near-copies that come at the same moment one is laid down first, and the other is told of it: they can't
        both pass as new. Repeating the call gives the same answer. Lexical: finds near-copies, not paraphrases.

        Args:
            item_id: the item that the text belongs to; its payload's title and content are what later texts are held
                against.
            text: title and content.
            threshold: least similarity to tell of, 0 to 1; `REJECT` and above is a duplicate.
        """
        check_id("item id", item_id)
        bands = await asyncio.to_thread(sketch, text)  # some milliseconds for a long text: leases are renewed meanwhile
        earlier = await self.store.call("sketch", [self.keys.bands, self.keys.sketched], [item_id, *bands])
        others = await self.find_many([each.decode() for each in earlier])
        return await asyncio.to_thread(_alike, text, [item for item in others if item is not None], threshold)

    # -- changing without a claim -------------------------------------------------------------------------------------

    async def update(
        self,
        section: str,
        item_id: str,
        updates: Patch,
        *,
        agent: str = "",
        priority: int | None = None,
        reason: str = "",
    ) -> bool:
        """Merge *updates* into the item's payload; a field set to None is removed.

        The item is read, merged and written only if nobody changed it in between, else once more. A claim that this
        process holds on the item is used, so that an agent can update what it works on.

        Raises:
            ItemNotFoundError: it isn't in this section.
            ItemHeldError: another process holds it.
            ClaimLostError: this process held it, and its lease ran out.
        """

        def patched(item: Item) -> bytes:
            return dump_payload(merge(item.payload, updates), f"payload of item {item_id!r}")

        await self._changes.change(
            item_id, "updated", section=str(section), payload=patched, priority=priority, agent=agent, reason=reason
        )
        return True

    async def move(
        self, item_id: str, from_section: str, to_section: str, updates: Patch | None = None, *,
        status: str | None = None, requires: str = "", agent: str = "", reason: str = "",
    ) -> bool:  # fmt: skip
        """Move an item that nobody holds to another section; it takes the entry status there unless *status* is named.

        Raises:
            ItemNotFoundError: it isn't in *from_section*.
            WrongStatusError: the board allows no such step.
            ItemHeldError: an agent holds it.
        """
        place = self.board.place(str(to_section), status)

        def patched(item: Item) -> bytes:
            return dump_payload(merge(item.payload, updates), f"payload of item {item_id!r}") if updates else b""

        await self._changes.change(
            item_id, "moved", section=str(from_section), to=place, requires=requires, payload=patched,
            agent=agent, reason=reason,
        )  # fmt: skip
        return True

    async def transition_status(
        self, section: str, item_id: str, new_status: str, agent_id: str = "", reason: str | None = None
    ) -> bool:
        """Take an item one step: within its section, or to the section where the new status is at home.

        If *agent_id* holds the item through this process, that ends its claim.

        Raises:
            WrongStatusError: the board allows no such step; the item is unchanged.
            ItemHeldError: another agent holds it.
        """
        item = await self.get(item_id)
        if item.section != section:
            raise ItemNotFoundError(item_id, self.board.name, str(section))
        place = self._home_of(str(new_status), str(section))
        if item.holder and item.holder == agent_id:
            claim = self._changes.own_claim(item)
            if claim is not None:
                await self.complete(claim, place, reason=reason or "")
                return True
        await self._changes.change(
            item_id,
            "moved",
            section=str(section),
            to=place,
            requires=item.requires,
            agent=agent_id,
            reason=reason or "",
        )
        return True

    def _home_of(self, status: str, section: str) -> Place:
        if status in self.board.section(section).statuses:
            return Place(section, status)
        for name, other in self.board.sections.items():
            if status in other.statuses:
                return Place(name, status)
        known = sorted({status for each in self.board.sections.values() for status in each.statuses})
        raise InvalidInputError("status", found=status, needed=f"one of {', '.join(known)}")

    async def release(self, item_id: str, *, agent: str = "", reason: str = "") -> int:
        """Bring an item back from quarantine, its crashes and attempts forgotten. Returns its new version.

        Raises:
            WrongStatusError: it is not in quarantine.
        """
        item = await self.get(item_id)
        if item.status != self.board.quarantine:
            raise WrongStatusError(item_id, found=f"in {item.section}/{item.status}", needed="in quarantine")
        section = self.board.section(item.section)
        place = self.board.place(
            item.section, section.entry if section.entry in section.ready else next(iter(section.ready))
        )
        return await self._changes.change(
            item_id, "released", section=item.section, to=place, requires=item.requires, agent=agent, reason=reason
        )

    async def retry(self, item_id: str, *, agent: str = "", reason: str = "") -> int:
        """Offer an item now that waits for its next attempt, or in quarantine. Returns its new version.

        Raises:
            WrongStatusError: nobody could claim it anyway: it is neither ready nor in quarantine.
        """
        item = await self.get(item_id)
        if item.status == self.board.quarantine:
            return await self.release(item_id, agent=agent, reason=reason)
        if not self.board.is_ready(item.section, item.status):
            raise WrongStatusError(
                item_id, found=f"in {item.section}/{item.status}", needed="waiting for an attempt, or in quarantine"
            )
        return await self._changes.change(item_id, "retried", section=item.section, agent=agent, reason=reason)

    async def archive(self, item_id: str, *, agent: str = "", reason: str = "") -> int:
        """Move an item to the board's archive. Its content hash stays known. Returns its new version.

        Raises:
            WrongStatusError: the board has no archive, or no step from here to it.
        """
        if self.board.archive is None:
            raise WrongStatusError(item_id, found=f"on board {self.board.name!r} without an archive", needed="one")
        item = await self.get(item_id)
        return await self._changes.change(
            item_id, "moved", section=item.section, to=Place.parse(self.board.archive), agent=agent, reason=reason
        )

    async def delete(self, section: str, item_id: str, *, agent: str = "", reason: str = "") -> bool:
        """Take an item off the board for good; False if it isn't in this section. Its content may be submitted again.

        Raises:
            ItemHeldError: an agent holds it.
        """
        return await self._changes.delete(item_id, str(section), agent=agent, reason=reason)

    # -- claims -------------------------------------------------------------------------------------------------------

    async def claim(
        self,
        section: str,
        agent_id: str,
        *,
        most: int = 1,
        role: str = "",
        statuses: Sequence[str] | None = None,
        capabilities: Sequence[str] = (),
        lease_s: float | None = None,
        most_held: int = 0,
    ) -> list[Claimed]:
        """Claim up to *most* ready items of a section, priority first, then the order of arrival; maybe none.

        The lease runs from now on; `leases.keep` renews it.
        """
        lanes = self.claims.lanes(str(section), statuses=statuses, capabilities=capabilities)
        request = ClaimRequest(
            agent_id=agent_id, role=role, lanes=lanes, most=most, most_held=most_held,
            lease_s=self.board.section(str(section)).lease_s if lease_s is None else lease_s,
        )  # fmt: skip
        [hand] = await self.claims.claim(request)
        return hand if isinstance(hand, list) else []

    async def complete(
        self,
        claim: Claim,
        to: Place | str | None = None,
        *,
        requires: str = "",
        patch: Patch | None = None,
        of: Item | None = None,
        result: Any = None,
        reason: str = "",
        delay_s: float = 0.0,
    ) -> int:
        """End a claim with success; the item goes to *to*, or where its section's ``then`` leads.

        Args:
            claim: the claim.
            to: ``section/status``.
            requires: the capability that the next claim of it needs.
            patch: merged into the payload.
            of: the item as it was claimed, if *patch* needs no fresh read.
            result: JSON data kept with the item.
            reason: for the log.
            delay_s: seconds before it can be claimed again, if *to* is ready.

        Returns:
            The item's new version; the same if the call is repeated.

        Raises:
            ClaimLostError: the lease ran out; nothing was written.
            WrongStatusError: the board allows no such step; the claim still holds.
        """
        ending = self.completion_of(claim, to, requires=requires, result=result, reason=reason, delay_s=delay_s)
        if patch is None:
            return (await self._end(ending))[1]
        for _ in range(TRIES):
            item = of or await self.find(claim.item_id)
            if item is None:
                raise ClaimLostError(claim.item_id, claim.agent_id, claim.token, "the item was deleted")
            ending.payload, ending.version = dump_payload(merge(item.payload, patch)), item.version
            try:
                return (await self._end(ending))[1]
            except VersionConflictError:
                of = None  # somebody updated it meanwhile: merge into what it is now
        raise VersionConflictError(claim.item_id, found=0, needed=ending.version)

    def completion_of(
        self,
        claim: Claim,
        to: Place | str | None = None,
        *,
        requires: str = "",
        result: Any = None,
        reason: str = "",
        delay_s: float = 0.0,
    ) -> Ending:
        """The ending that completes *claim*, for `ClaimDesk.end`; see `complete`, which sends it."""
        return Ending(
            claim=claim, kind="complete", to=self._destination(claim, to, requires),
            quarantine=self.claims.quarantine_of(claim.lane), delay_s=delay_s, reason=one_line(reason) if reason else "",
            trace=current_trace(),
            result=dump_json(result, f"result of item {claim.item_id!r}") if result is not None else b"",
        )  # fmt: skip

    async def fail(
        self, claim: Claim, error: str, *, retry_in_s: float = 0.0, give_up: bool = False, reason: str = ""
    ) -> str:
        """End a claim with a failure. Returns ``failed`` (it waits for its next attempt) or ``quarantined``.

        Args:
            claim: the claim.
            error: what went wrong; the first 4 KB are kept with the item.
            retry_in_s: seconds before the next attempt.
            give_up: don't try again: to quarantine at once.
            reason: for the log; the error's first line by default.
        """
        line = orjson.dumps(
            {
                "at_ms": int(time.time() * 1000),
                "kind": "failed",
                "agent": claim.agent_id,
                "token": str(claim.token),
                "error": clean_text(error, 4096),
            }
        )
        ending = Ending(
            claim=claim, kind="give_up" if give_up else "fail", to=self.claims.retry_of(claim.lane),
            quarantine=self.claims.quarantine_of(claim.lane), delay_s=retry_in_s, reason=one_line(reason or error),
            trace=current_trace(), error=line,
        )  # fmt: skip
        return (await self._end(ending))[0]

    async def hand_back(self, claim: Claim, *, reason: str = "", delay_s: float = 0.0) -> int:
        """End a claim as if it had not been taken: no attempt, no crash is counted. Returns the new version."""
        return (await self._end(self.claims.hand_back_of(claim, reason=one_line(reason), delay_s=delay_s)))[1]

    def _destination(self, claim: Claim, to: Place | str | None, requires: str) -> str:
        """The lane that *to* names, or where the section leads that *claim* was made in."""
        asked = (claim.lane, to, requires)
        known = self._destinations.get(asked)
        if known is not None:
            return known
        if requires:
            check_name("capability", requires)
        if to is not None:
            place = Place.parse(to)
            place = self.board.place(place.section, place.status)
        else:
            name, status, _ = claim.lane.split("/")
            section = self.board.section(name)
            claimed = section.ready[status]
            if claimed not in section.then:
                raise WrongStatusError(
                    claim.item_id, found=f"in {name}/{claimed}, whose section names no next place", needed="a place",
                    step="say where it goes: complete(claim, 'section/status')",
                )  # fmt: skip
            place = Place.parse(section.then[claimed])
        return self._destinations.setdefault(asked, lane_name(place.section, place.status, requires))

    async def _end(self, ending: Ending) -> tuple[str, int]:
        answer = await self.claims.end(ending)
        self.leases.drop(ending.claim)
        return answer

    # -- doors to the parts -------------------------------------------------------------------------------------------

    async def query_by_status(self, section: str, status: str, limit: int = 100) -> list[dict[str, Any]]:
        """Items of a section with a status, priority first, then the order of arrival, as `read` gives them."""
        return [item.as_dict() for item in await self.queries.by_status(str(section), str(status), limit=limit)]

    async def query_by_agent(self, agent_id: str, section: str | None = None) -> list[dict[str, Any]]:
        """Items that an agent holds now, as `read` gives them."""
        return [item.as_dict() for item in await self.queries.by_agent(agent_id, section)]

    async def get_section_stats(self, section: str) -> dict[str, Any]:
        """``{"section", "total", "by_status": {status: items}}``."""
        self.board.section(str(section))
        return (await self.get_all_stats())[str(section)]

    async def get_all_stats(self) -> dict[str, dict[str, Any]]:
        """`get_section_stats` of every section, in one round trip."""
        return await self.queries.stats()

    def acquire_lock(self, resource: str, agent_id: str, timeout: float = 10.0, *, lease_s: float = 30.0) -> Lock:
        """A lock on *resource* (an item id, or any name): ``async with blackboard.acquire_lock(item_id, agent_id):``.

        It is a claim on an item of its own, renewed while it is held and free again when its holder dies.

        Args:
            resource: what to lock.
            agent_id: who holds it.
            timeout: seconds to wait for it.
            lease_s: after how long a dead holder's lock is free.

        Raises:
            LockNotAcquiredError: when entered, if somebody else held it all the time.
        """
        return Lock(self._lock_table, resource, agent_id, timeout_s=timeout, lease_s=lease_s, waits=self.waits)

    async def extend_lock(self, lock: Lock, additional_time: float = 60.0) -> bool:
        """Keep *lock* for at least so many seconds more without a renewal; False if it is not held any more."""
        return await lock.extend(additional_time)

    async def _lock_table(self) -> Locks:
        if self._locks is None:
            board = lock_board(lock_board_name(self.board.name))
            desk = Blackboard(self.store, board, namespace=self.namespace, random=self._random)
            await self._closing.enter_async_context(desk)
            self._locks = Locks(desk)
        return self._locks

    @property
    def lock_desk(self) -> Blackboard | None:
        """The board that this one's locks stand on, once one was asked for."""
        return self._locks.desk if self._locks is not None else None

    async def register_agent(self, agent_id: str, role: str, capabilities: Sequence[str] = (), **facts: Any) -> None:
        """Make an agent known; `AgentRegistry.register`."""
        await self.agents.register(agent_id, role, capabilities, **facts)

    async def heartbeat(self, agent_id: str) -> None:
        """Say that an agent lives."""
        await self.agents.beat(agent_id)

    async def get_agent_state(self, agent_id: str) -> dict[str, Any] | None:
        """What is known of an agent, as JSON data, or None."""
        found = await self.agents.find(agent_id)
        return found.as_dict() if found else None

    async def update_agent_state(self, agent_id: str, **facts: Any) -> None:
        """Change an agent's state or description."""
        await self.agents.update(agent_id, **facts)

    async def get_all_agents(self) -> list[dict[str, Any]]:
        """Every agent that is registered."""
        return [agent.as_dict() for agent in await self.agents.list()]

    async def follow(self, start: str = "$") -> AsyncIterator[Event]:
        """Events as they happen, from behind *start* on (``$``: from now), for ever. A reader that fell behind gets them
        all, as far as the log was not trimmed meanwhile.
        """
        async for event in self.events.follow(await self.events.last_id() if start == "$" else start):
            yield event

    async def wait_for(self, item_id: str, *statuses: str) -> Item:
        """Wait until an item has one of *statuses*; by default until its life is over, well or not: a final status, or
        quarantine. Limit it with ``asyncio.timeout``.

        All who wait in a process share one connection, on which Redis tells of each change of the board.

        Returns:
            The item. It may have moved on in the moment that it took to read it.

        Raises:
            ItemNotFoundError: there is no such item, or not any more.
            InvalidInputError: no section has such a status.
        """
        return await self._arrivals.wait_for(item_id, statuses)


def _hash_of(payload: Mapping[str, Any]) -> str:
    given = payload.get("content_hash")
    if isinstance(given, str) and given:
        return given
    told = [str(payload.get(name) or "") for name in ("title", "content", "source")]
    if any(told[:2]):
        return content_hash(*told)
    return content_hash(orjson.dumps(dict(payload) | {"id": None}, option=orjson.OPT_SORT_KEYS).decode())


def _alike(text: str, others: Sequence[Item], threshold: float) -> list[Likeness]:
    found = [Likeness(item=item, similarity=round(similarity(text, text_of(item.payload)), 4)) for item in others]
    return sorted((each for each in found if each.similarity >= threshold), key=lambda each: -each.similarity)
