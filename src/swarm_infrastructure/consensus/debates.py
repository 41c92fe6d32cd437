"""The debates of one board: open, argue, vote, and learn the outcome. Leaves what follows from it to the caller."""

from __future__ import annotations

import asyncio
import hashlib
import math
import random as chance
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn
from uuid import uuid4

import orjson
import structlog

from ..blackboard.items import check_seconds
from ..blackboard.waits import Waits
from ..errors import (
    DebateNotFoundError,
    DebateRefusedError,
    InvalidInputError,
    LibraryMismatchError,
    SwarmError,
)
from ..keys import BoardKeys, check_id, check_name
from ..store import Store
from .values import MILLI, Argument, Cast, Debate, Verdict, Vote, read_argument, read_debate, read_vote

__all__ = ["Debates"]

log = structlog.get_logger(__name__)

MOST_OPTIONS = 16
MOST_VOTERS = 200  # the list is read with every call
MOST_ROLES = 32
MOST_VOTES = 1000
OPTION_CHARS, TOPIC_CHARS, REASON_CHARS, TEXT_CHARS = 200, 4_000, 4_000, 16_000
ARGUMENTS_EACH, ARGUMENTS_MOST = 8, 200  # 200 × 16 KB: 3 MB for the longest debate
LEAST_S, KEEP_S = 0.05, 7 * 86400.0
POLL_S = 1.0  # how long `wait` trusts its ears; where nothing is heard, this is its latency
LISTED = 1000
SWEPT = 100  # debates that one round closes or forgets

Announce = Callable[[str, Mapping[str, Any]], Awaitable[object]]
Listen = Callable[[str], Awaitable[object]]


class Debates:
    """The debates of one board.

    Args:
        store: the Redis that holds the board.
        keys: of the board.
        announce: tells others: called with ``debate.invite``, ``debate.argument``, ``debate.vote`` or ``debate.consensus``
            (the last for every outcome) and JSON data. A hint: if it fails with a `SwarmError`, the debate goes on.
        listen: called with a debate's id, returns when something may have happened to it, or never. A hint as well.
        poll_s: seconds after which `wait` looks again by itself.
        random: source of jitter.
        waits: where long waits for a verdict are written down.
    """

    def __init__(
        self, store: Store, keys: BoardKeys, announce: Announce | None = None, *, listen: Listen | None = None,
        poll_s: float = POLL_S, random: chance.Random | None = None, waits: Waits | None = None,
    ) -> None:  # fmt: skip
        self._store, self._board = store, keys
        self._announce, self._listen = announce, listen
        self._poll_s, self._random = poll_s, random or chance.Random()
        self._waits = waits

    # -- moderating -------------------------------------------------------------------------------------------------

    async def open(
        self,
        debate_id: str,
        topic: str,
        options: Sequence[str] = ("publish", "reject"),
        *,
        voters: Sequence[str] = (),
        roles: Sequence[str] = (),
        expected: int | None = None,
        quorum: int | None = None,
        threshold: float = 0.5,
        weighted: bool = True,
        deadline_s: float = 30.0,
        item_id: str = "",
        opened_by: str = "",
        arguments_each: int = ARGUMENTS_EACH,
        arguments_most: int = ARGUMENTS_MOST,
        keep_s: float = KEEP_S,
    ) -> Debate:
        """Open a debate and invite to it; opening it again with the same facts gives the one that stands.

        Name a debate after what it is about (``item_id:round``): who opens it anew after a crash then finds it, open or
        decided, and invites once more.

        Args:
            debate_id: names it.
            topic: what it is about, for whoever argues.
            options: the positions, two or more.
            voters: agents that may vote. With no voters and no roles anybody may.
            roles: roles whose agents may vote.
            expected: votes that there can be; when they are in, the debate closes. By default as many as *voters* if only
                those may vote, else not known: then only the deadline closes it.
            quorum: votes that an outcome needs; by default more than half of *expected*, or 1 if that is not known.
            threshold: the share of the weight that a consensus needs at least, above 0 and up to 1.
            weighted: a vote weighs its confidence; False: every vote weighs the same.
            deadline_s: seconds until it closes in any case.
            item_id: the item it is about, if any.
            opened_by: the agent.
            arguments_each: how many arguments an agent may bring.
            arguments_most: how many all of them may bring.
            keep_s: how long it is kept once it is closed.

        Raises:
            InvalidInputError: an argument breaks a limit; the message names it.
            DebateRefusedError: there is a debate of this id that was opened with other facts.
        """
        check_id("debate id", debate_id)
        positions = _check_options(options)
        if expected is None:
            expected = len(set(voters)) if voters and not roles else 0
        most = len(set(voters)) if voters and not roles else MOST_VOTES
        expected = _whole("expected", expected, 0, most)
        quorum = _whole("quorum", expected // 2 + 1 if quorum is None else quorum, 1, expected or most)
        if not isinstance(threshold, int | float) or not 1 / MILLI <= threshold <= 1:  # NaN is not, either
            raise InvalidInputError("threshold", found=threshold, needed="0.001 to 1")
        if item_id:
            check_id("item id", item_id)
        if opened_by:
            check_id("agent id", opened_by)
        facts: dict[str, str | int] = {
            "topic": _text("topic", topic, TOPIC_CHARS),
            "item": item_id,
            "options": "\n".join(positions),
            "voters": _names("voters", voters, check_id, MOST_VOTERS),
            "roles": _names("roles", roles, check_name, MOST_ROLES),
            "expected": expected,
            "quorum": quorum,
            "threshold": round(threshold * MILLI),
            "weighted": "1" if weighted else "",
            "arguments_each": _whole("arguments_each", arguments_each, 0, ARGUMENTS_MOST),
            "arguments_most": _whole("arguments_most", arguments_most, 0, ARGUMENTS_MOST),
            "keep_ms": check_seconds("keep_s", keep_s),
        }
        deadline_ms = check_seconds("deadline_s", deadline_s, least=LEAST_S)
        digest = hashlib.sha256(orjson.dumps([facts, deadline_ms])).hexdigest()
        facts["opened_by"] = opened_by  # no part of the digest: another agent may take the debate over
        named = [each for pair in facts.items() for each in pair]
        match await self._call("open_debate", debate_id, digest, deadline_ms, *named):
            case [b"stands", now_ms, mine, flat, due]:
                debate = await self._heard(debate_id, now_ms, mine, flat)
            case [b"differs"]:
                raise DebateRefusedError(
                    debate_id, "", "differs", "it was opened with other facts; open one under another id, or with the same facts"
                )  # fmt: skip
            case answer:
                raise LibraryMismatchError("open_debate", answer)
        if debate.is_open:
            await self._tell("debate.invite", _invitation(debate))
        if due:
            await self.sweep()
        return debate

    async def cancel(self, debate_id: str, reason: str = "") -> Verdict:
        """End a debate without a decision; gives the verdict that stands, which is another if it was closed before.

        Raises:
            DebateNotFoundError: there is none of this id.
        """
        debate = await self._look(debate_id, "1", _text("reason", reason, REASON_CHARS))
        assert debate.verdict is not None  # that is what cancelling does
        return debate.verdict

    async def forget(self, debate_id: str) -> bool:
        """Take a closed debate out of Redis before its time; False if it is not there any more.

        Raises:
            DebateRefusedError: it is open; cancel it first.
        """
        try:
            await self._look(
                debate_id
            )  # one whose deadline has passed is to end before it goes, and others to hear of it
        except DebateNotFoundError:
            return False
        match await self._call("forget_debate", debate_id, "1"):
            case [b"forgotten"]:
                return True
            case [b"missing"]:
                return False
            case [b"open"]:
                raise DebateRefusedError(debate_id, "", "open", "it is open, needed a closed one; cancel it first")
            case answer:
                raise LibraryMismatchError("forget_debate", answer)

    async def sweep(self) -> tuple[int, int]:
        """Close debates whose deadline has passed and forget those kept long enough: how many of each. Opening one does it too.

        Nobody depends on it: who looks at a debate closes it if it is due.
        """
        _, _, due, kept = await self._list(SWEPT)
        for debate_id in due:
            with suppress(DebateNotFoundError):
                await self._look(debate_id)
        for debate_id in kept:
            await self._call("forget_debate", debate_id, "")
        return len(due), len(kept)

    # -- taking part ------------------------------------------------------------------------------------------------

    async def open_debates(self, agent_id: str = "", role: str = "") -> list[Debate]:
        """Open debates that this agent may still vote on, the one that ends first before the others.

        Args:
            agent_id: leaves out those it has voted on; "" leaves out none.
            role: of the agent. With neither, all open debates.
        """
        now_ms, ids, _, _ = await self._list(LISTED)
        if not ids:
            return []
        questions: list[tuple[str, ...]] = []
        for debate_id in ids:
            keys = self._board.debate(debate_id)
            questions += [("HGETALL", keys.record), ("HEXISTS", keys.votes, agent_id)]
        answers, found = await self._store.commands(*questions), []
        for debate_id, fields, voted in zip(ids, answers[::2], answers[1::2], strict=True):
            if not fields:
                continue
            debate = read_debate(debate_id, _as_text(fields), now_ms)
            invited = debate.invites(agent_id, role) if agent_id or role else True
            if debate.is_open and invited and not voted:
                found.append(debate)
        return found

    async def argue(
        self, debate_id: str, agent_id: str, position: str, text: str, confidence: float = 1.0, *, role: str = ""
    ) -> Argument | None:
        """Bring an argument; None if the debate is over.

        Args:
            debate_id: which debate.
            agent_id: who speaks.
            position: the one it speaks for; "" for none.
            text: the argument.
            confidence: from 0 to 1.
            role: of the agent, where roles are invited.

        Raises:
            DebateNotFoundError: there is none of this id.
            DebateRefusedError: the agent was not invited, or there are as many arguments as may be.
            InvalidInputError: the debate has no such position, or an argument breaks a limit.
        """
        args = self._speaker(debate_id, agent_id, role, position, confidence)
        text = _text("text of an argument", text, TEXT_CHARS)
        match await self._call("argue_debate", debate_id, *args, text):
            case [b"argued", now_ms, mine, flat, number, packed]:
                debate = await self._heard(debate_id, now_ms, mine, flat)
                argument = read_argument(int(number), packed, debate.options)
                await self._tell(
                    "debate.argument",
                    {
                        "debate_id": debate_id, "item_id": debate.item_id, "number": argument.number, "agent_id": agent_id,
                        "position": position, "confidence": argument.confidence, "text": text,
                    },
                )  # fmt: skip
                return argument
            case [b"late", now_ms, mine, flat]:
                await self._heard(debate_id, now_ms, mine, flat)
                return None
            case [b"most", _, _, _, limit, of]:
                whose = f"{agent_id!r} has brought" if of == b"each" else "there are"
                why = f"{whose} {limit.decode()} arguments, needed fewer; vote, or open debates with a higher limit"
                raise DebateRefusedError(debate_id, agent_id, "arguments", why)
            case answer:
                self._refuse("argue_debate", debate_id, agent_id, role, position, answer)

    async def vote(
        self, debate_id: str, agent_id: str, choice: str, confidence: float = 1.0, reason: str = "", *, role: str = ""
    ) -> Cast:
        """Give an agent's one vote; the same vote once more gives the first answer and counts once.

        A vote that comes after the debate has closed is a value, not an error: ``cast.counted`` is False, and
        ``cast.debate.verdict`` is there.

        Args:
            debate_id: which debate.
            agent_id: who votes.
            choice: one of the debate's options.
            confidence: from 0 to 1; what the vote weighs, if the debate weighs votes. With 0 it counts for the quorum alone.
            reason: for whoever reads it later.
            role: of the agent, where roles are invited.

        Raises:
            DebateNotFoundError: there is none of this id.
            DebateRefusedError: the agent was not invited, or has voted otherwise (``standing`` is that vote).
            InvalidInputError: the debate has no such option, or an argument breaks a limit.
        """
        args = self._speaker(debate_id, agent_id, role, choice, confidence)
        match await self._call("vote_debate", debate_id, *args, _text("reason", reason, REASON_CHARS)):
            case [b"voted" | b"standing" as word, now_ms, mine, flat, packed]:
                debate = self._read(debate_id, now_ms, flat)
                vote = read_vote(agent_id, packed, debate.options)
                if word == b"voted":
                    await self._tell(
                        "debate.vote", {**_as_dict(vote), "debate_id": debate_id, "item_id": debate.item_id}
                    )
                await self._heard(debate_id, now_ms, mine, flat)
                return Cast(vote=vote, debate=debate, closed=bool(mine))
            case [b"late", now_ms, mine, flat]:
                debate = await self._heard(debate_id, now_ms, mine, flat)
                return Cast(vote=None, debate=debate, closed=bool(mine))
            case [b"again", now_ms, _, flat, packed]:
                standing = read_vote(agent_id, packed, self._read(debate_id, now_ms, flat).options)
                why = f"it has voted {standing.choice!r} ({standing.confidence:g}), needed no vote before; the first one counts"
                raise DebateRefusedError(debate_id, agent_id, "voted", why, standing=standing)
            case answer:
                self._refuse("vote_debate", debate_id, agent_id, role, choice, answer)

    # -- looking ----------------------------------------------------------------------------------------------------

    async def get(self, debate_id: str) -> Debate:
        """The debate as it stands; closes it if its deadline has passed.

        Raises:
            DebateNotFoundError: there is none of this id.
        """
        return await self._look(debate_id)

    async def outcome(self, debate_id: str) -> Verdict | None:
        """How the debate ended; None while it is open. Closes it if its deadline has passed.

        Raises:
            DebateNotFoundError: there is none of this id.
        """
        return (await self._look(debate_id)).verdict

    async def wait(self, debate_id: str, agent_id: str = "") -> Verdict:
        """The verdict, as soon as there is one: at the deadline at the latest.

        Args:
            debate_id: which.
            agent_id: who waits, so that ``swarm why`` can tell.

        Raises:
            DebateNotFoundError: there is none of this id.
        """
        if self._waits is None or not agent_id:
            return await self._wait(debate_id)
        async with self._waits.recorded(check_id("agent id", agent_id), "debate", check_id("debate id", debate_id)):
            return await self._wait(debate_id)

    async def _wait(self, debate_id: str) -> Verdict:
        while True:
            heard = asyncio.ensure_future(self._listen(debate_id)) if self._listen else None  # before it looks
            try:
                debate = await self._look(debate_id)
                if debate.verdict is not None:
                    return debate.verdict
                pause_s = min(self._poll_s * (0.5 + self._random.random()), debate.left_s + 0.001)
                if heard is None:
                    await asyncio.sleep(pause_s)
                else:
                    await self._hear(heard, pause_s)
            finally:
                if heard is not None:
                    heard.cancel()
                    await asyncio.gather(heard, return_exceptions=True)

    async def arguments(self, debate_id: str) -> list[Argument]:
        """All arguments, the first first.

        Raises:
            DebateNotFoundError: there is none of this id.
        """
        options, found = await self._part(debate_id, self._board.debate(debate_id).arguments)
        numbered = {int(number): packed for number, packed in found.items() if not number.startswith(b"of|")}
        return [read_argument(number, numbered[number], options) for number in sorted(numbered)]

    async def votes(self, debate_id: str) -> list[Vote]:
        """All votes, the first first.

        Raises:
            DebateNotFoundError: there is none of this id.
        """
        options, found = await self._part(debate_id, self._board.debate(debate_id).votes)
        votes = (read_vote(agent.decode(), packed, options) for agent, packed in found.items())
        return sorted(votes, key=lambda each: each.number)

    async def _part(self, debate_id: str, key: str) -> tuple[list[str], dict[bytes, bytes]]:
        check_id("debate id", debate_id)
        options, found = await self._store.commands(
            ("HGET", self._board.debate(debate_id).record, "options"), ("HGETALL", key)
        )
        if options is None:
            raise DebateNotFoundError(debate_id)
        return options.decode().split("\n"), found

    # -- how --------------------------------------------------------------------------------------------------------

    async def _call(self, function: str, debate_id: str, *args: Any) -> Any:
        board, debate = self._board, self._board.debate(debate_id)
        keys = [board.rules, board.debates, board.debates_closed, debate.record]
        if function in ("argue_debate", "forget_debate"):
            keys.append(debate.arguments)
        if function in ("vote_debate", "forget_debate"):
            keys.append(debate.votes)
        return await self._store.call(function, keys, (debate_id, uuid4().hex, *args))

    async def _list(self, most: int) -> tuple[int, list[str], list[str], list[str]]:
        board = self._board
        now_ms, *lists = await self._store.call(
            "list_debates", [board.rules, board.debates, board.debates_closed], [most]
        )
        running, due, kept = ([each.decode() for each in ids] for ids in lists)
        return int(now_ms), running, due, kept

    async def _look(self, debate_id: str, cancel: str = "", reason: str = "") -> Debate:
        match await self._call("look_debate", check_id("debate id", debate_id), cancel, reason):
            case [b"stands", now_ms, mine, flat]:
                return await self._heard(debate_id, now_ms, mine, flat)
            case [b"missing"]:
                raise DebateNotFoundError(debate_id)
            case answer:
                raise LibraryMismatchError("look_debate", answer)

    async def _heard(self, debate_id: str, now_ms: bytes, mine: bytes, flat: list[bytes]) -> Debate:
        """The debate of an answer; if this call was the one that closed it, everybody is told."""
        debate = self._read(debate_id, now_ms, flat)
        if mine and debate.verdict is not None:
            await self._tell("debate.consensus", debate.verdict.as_dict())
        return debate

    @staticmethod
    def _read(debate_id: str, now_ms: bytes, flat: list[bytes]) -> Debate:
        return read_debate(debate_id, _as_text(dict(zip(flat[::2], flat[1::2], strict=True))), int(now_ms))

    async def _tell(self, kind: str, facts: Mapping[str, Any]) -> None:
        if self._announce is None:
            return
        try:
            await self._announce(kind, facts)
        except SwarmError as error:
            log.warning(
                "a debate goes on, but others were not told", kind=kind, why=str(error), debate=facts["debate_id"]
            )

    @staticmethod
    async def _hear(heard: asyncio.Future[object], pause_s: float) -> None:
        done, _ = await asyncio.wait({heard}, timeout=pause_s)
        if done and isinstance(heard.exception(), SwarmError):  # deaf for now: the pause is as long as without ears
            await asyncio.sleep(pause_s)
        elif done:
            heard.result()

    @staticmethod
    def _speaker(debate_id: str, agent_id: str, role: str, position: str, confidence: float) -> tuple[Any, ...]:
        check_id("debate id", debate_id)
        check_id("agent id", agent_id)
        if role:
            check_name("role", role)
        if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 <= confidence <= 1:
            raise InvalidInputError("confidence", found=confidence, needed="a number from 0 to 1")
        return agent_id, role, _text("position", position, OPTION_CHARS), math.floor(confidence * MILLI + 0.5)

    def _refuse(self, function: str, debate_id: str, agent_id: str, role: str, position: str, answer: Any) -> NoReturn:
        match answer:
            case [b"missing"]:
                raise DebateNotFoundError(debate_id)
            case [b"option", now_ms, _, flat]:
                debate = self._read(debate_id, now_ms, flat)
                raise InvalidInputError(
                    f"position in debate {debate_id!r}", found=position, needed=f"one of {', '.join(debate.options)}"
                )
            case [b"uninvited", now_ms, _, flat]:
                debate = self._read(debate_id, now_ms, flat)
                named = ", ".join([*debate.voters[:5], *(f"role {each}" for each in debate.roles[:5])])
                why = f"it is not invited (role {role!r}), needed one of {named}; nothing was written"
                raise DebateRefusedError(debate_id, agent_id, "uninvited", why)
            case _:
                raise LibraryMismatchError(function, answer)


def _as_text(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}


def _as_dict(vote: Vote) -> dict[str, Any]:
    return {name: getattr(vote, name) for name in vote.__slots__}


def _invitation(debate: Debate) -> dict[str, Any]:
    return {
        "debate_id": debate.id, "item_id": debate.item_id, "topic": debate.topic, "options": list(debate.options),
        "voters": list(debate.voters), "roles": list(debate.roles), "quorum": debate.quorum, "expected": debate.expected,
        "deadline_ms": debate.deadline_ms, "opened_by": debate.opened_by,
    }  # fmt: skip


def _text(what: str, text: object, most: int) -> str:
    if not isinstance(text, str) or len(text) > most:
        found = f"{len(text):,} characters" if isinstance(text, str) else text
        raise InvalidInputError(what, found=found, needed=f"a text of at most {most:,} characters", step="shorten it")
    return text.encode("utf-8", "replace").decode()  # a lone surrogate is no UTF-8


def _check_options(options: Sequence[str]) -> list[str]:
    if isinstance(options, str) or not 2 <= len(options) <= MOST_OPTIONS or len(set(options)) != len(options):
        raise InvalidInputError("options", found=options, needed=f"2 to {MOST_OPTIONS} different positions")
    for each in options:
        if not _text("option", each, OPTION_CHARS).strip() or not each.isprintable():
            raise InvalidInputError("option", found=each, needed="a printable text in one line")
    return [_text("option", each, OPTION_CHARS) for each in options]


def _names(what: str, names: Sequence[str], check: Callable[[str, str], str], most: int) -> str:
    if isinstance(names, str) or len(names) > most:
        raise InvalidInputError(what, found=names, needed=f"a list of at most {most}")
    return " ".join(sorted({check(what, each) for each in names}))


def _whole(what: str, number: object, least: int, most: int) -> int:
    if type(number) is not int or not least <= number <= most:
        raise InvalidInputError(what, found=number, needed=f"a whole number from {least} to {most}")
    return number
