"""Steps in any order: the board in Redis and the one in plain Python give the same answers and hold the same.

Hypothesis picks each step, and when the two disagree it leaves out those that do not matter; what the step is done to is
chosen by a random generator that Hypothesis seeds. (Left to draw those itself, it likes to repeat itself and the ends of
ranges: one step in a hundred was a claim that got something.) Board time is set before each step to a whole second of the
model's clock, and leases, delays and memories end at half seconds, so that the few milliseconds that really pass decide
nothing.

``SWARM_MODEL_EXAMPLES=5000`` looks for longer and elsewhere each time; ``--hypothesis-seed=7`` says where.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from random import Random
from typing import Any, Self

import pytest
from hypothesis import HealthCheck, Phase, note, reject, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from model import Ask, Model, New, Refused, Thing

from swarm_infrastructure import errors
from swarm_infrastructure.blackboard import (
    NEWS,
    Blackboard,
    Board,
    Claimed,
    ClaimRequest,
    Item,
    Place,
    Section,
    Submission,
)
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.blackboard.retention import LogBound, Retention
from swarm_infrastructure.keys import lane_name
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import RedisServer

EXAMPLES = int(os.environ.get("SWARM_MODEL_EXAMPLES", "0"))
STEPS = 50
STALLS = 3  # how often one life is begun anew because the computer stood still
SLACK_MS = 300  # a step that took longer could have passed a deadline that the model has not
LOOK_EVERYWHERE_EVERY = 5  # steps; the audit and all queries take 20 ms, the items and numbers 2

DESK = Board(
    name="desk",
    sections={
        "inbox": Section(
            ready={"new": "reading", "again": "reading"}, retry="again", then={"reading": "floor/waiting"},
            lease_s=4.5, max_attempts=3, max_crashes=2, cap=5, max_payload_bytes=100,
        ),
        "floor": Section(  # waiting and being worked on look the same; what comes without a status is parked first
            ready={"waiting": "waiting"}, resting=("parked",), entry="parked",
            lease_s=6.5, max_attempts=3, max_crashes=2, max_payload_bytes=200,
        ),
        "shelf": Section(resting=("done", "dropped"), max_payload_bytes=200),
    },
    steps={
        "new": frozenset({"dropped"}),
        "reading": frozenset({"waiting", "parked", "dropped"}),
        "again": frozenset({"new", "dropped"}),
        "parked": frozenset({"waiting", "dropped"}),
        "waiting": frozenset({"waiting", "parked", "done"}),
        "done": frozenset({"dropped"}),
    },
    final=frozenset({"done", "dropped"}),
    archive="shelf/dropped",
)  # fmt: skip

IDS = [f"i{n}" for n in range(8)]
AGENTS = {"ada": "reader", "bob": "reader", "cyd": "maker"}
TAGS = ["ink", "glue"]
GATES = ["*", "role:reader", "agent:ada", "agent:cyd"]
DELAYS = [0.0, 0.0, 2.5, 5.5]
PATCHES: list[dict[str, Any] | None] = [
    None, {}, {"a": 1}, {"a": 2, "b": []}, {"a": None}, {"a": "x" * 90}, {"a": "x" * 300},
]  # fmt: skip
SEEN = (
    "section", "status", "requires", "priority", "version", "seq", "attempts", "crashes", "token", "holder", "origin",
    "content_hash", "payload", "result",
)  # fmt: skip

Real = Callable[[], Awaitable[Any]]
Expected = Callable[[], Any]
Part = tuple[str, Real, Expected]  # of a step: what it is, in words; how to do it; what the model says


def always(_machine: Machine) -> bool:
    return True


WAYS: list[tuple[int, str, Callable[[Machine], bool]]] = []  # how often, name of the method, when


def way(often: int, when: Callable[[Any], bool] = always) -> Callable[[Any], Any]:
    """A method that does one step; *often* as compared with the others."""

    def register(method: Any) -> Any:
        WAYS.append((often, method.__name__, when))
        return method

    return register


class TooSlow(Exception):
    """This computer stood still for so long that nothing can be said about what came of it."""


class EchoStore(Store):
    """With ``echo`` each call is executed twice and the second answer is given: as if the first had been lost."""

    echo = False

    async def call(self, function: str, keys: Sequence[str], args: Sequence[Any] = (), **how: Any) -> Any:
        if self.echo:
            await super().call(function, keys, args, **how)
        return await super().call(function, keys, args, **how)


class Machine:
    """The model and the board, side by side. Use it as ``async with``."""

    namespaces = itertools.count()

    def __init__(self, server: RedisServer, board: Board) -> None:
        self.server, self.board, self.model = server, board, Model(board)
        self.board_sections = list(board.sections)
        self.busy = [name for name, section in board.sections.items() if section.ready]
        self.entries = [f"{name}/{next(iter(board.sections[name].ready))}" for name in self.busy]
        self.places = [f"{name}/{status}" for name, section in board.sections.items() for status in section.statuses]
        self.claims: dict[str, tuple[Claimed, int]] = {}  # every claim ever made, by a name for it → its model token
        self.open: set[str] = set()  # those that nobody ended or forgot
        self.endings: list[Part] = []
        self.tokens = {0: 0}  # the model's → Redis'
        self.done: list[tuple[str, int]] = []  # the ways gone, each with the seed of all that it chose
        self.story: list[str] = []
        self.random = Random(0)
        self.steps = 0
        self.namespace = f"m{next(self.namespaces)}"
        self.store = EchoStore(server.url)
        self.blackboard = Blackboard(self.store, board, namespace=self.namespace)
        self.base_ms, self.offset_ms = int(time.time()) * 1000, 0

    async def __aenter__(self) -> Self:
        await self.store.__aenter__()
        await self.blackboard.__aenter__()
        for agent, role in AGENTS.items():
            await self.blackboard.register_agent(agent, role)
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.store.echo = False
        await self.blackboard.__aexit__(None, None, None)
        await self.store.command("FLUSHDB")
        await self.store.close()

    # -- many steps ---------------------------------------------------------------------------------------------------

    def ways(self) -> list[str]:
        """What can be done now, each as often as it is to be drawn."""
        return [name for often, name, when in WAYS if when(self) for _ in range(often)]

    async def go(self, way: str, seed: int) -> None:
        """Do one of `ways`; *seed* decides what it is done to."""
        self.done.append((way, seed))
        self.random = Random(seed)
        await getattr(self, way)()

    async def compare(self) -> None:
        """All that can be seen is the same on both sides."""
        await self._compare(everything=True)

    # -- a step -------------------------------------------------------------------------------------------------------

    async def step(self, what: str, real: Real, expected: Expected) -> Any:
        """Do one thing on both sides: the answers, and then all that can be seen, must be the same.

        Returns the answer, or None if it was refused.
        """
        self.story.append(f"{self.model.now_ms / 1000:5.0f} s  {'(twice) ' * self.store.echo}{what}")
        wanted = _or_refusal(expected)
        await self._set_clock()
        answer: Any
        try:
            answer = await real()
        except errors.RefusedError as error:
            answer = type(error)
        finally:
            if self._late_ms() > SLACK_MS:
                raise TooSlow
        self.store.echo = False
        self.story[-1] += f" → {_shown(answer)}"
        assert answer == wanted, f"{what} answered {_shown(answer)}, the model {_shown(wanted)}"
        self.steps += 1
        await self._compare(everything=self.steps % LOOK_EVERYWHERE_EVERY == 0)
        return None if isinstance(answer, type) else answer

    def _late_ms(self) -> float:
        """How far the board's clock is ahead of the model's."""
        return time.time() * 1000 + self.offset_ms - self.base_ms - self.model.now_ms

    async def _set_clock(self) -> None:
        self.offset_ms = await self.store.command(
            "HINCRBY", self.blackboard.keys.rules, "clock_offset_ms", -round(self._late_ms())
        )

    # -- comparing ----------------------------------------------------------------------------------------------------

    async def _compare(self, *, everything: bool) -> None:
        blackboard, model = self.blackboard, self.model
        found = dict(zip(IDS, await blackboard.find_many(IDS), strict=True))
        for item_id, item in found.items():
            thing = model.items.get(item_id)
            seen, wanted = self._found(item), self._seen(thing)
            assert seen == wanted, f"{item_id} is\n    {seen}\n  the model has\n    {wanted}"
        stats = {name: each["by_status"] for name, each in (await blackboard.get_all_stats()).items()}
        stats = {name: {status: n for status, n in each.items() if n} for name, each in stats.items()}
        assert stats == model.stats(), f"stats are {stats}, the model has {model.stats()}"
        if not everything:
            return
        limit = 1 + self.steps % 9
        for name, section in self.board.sections.items():
            for status in [*section.statuses, *([self.board.quarantine] if section.ready else [])]:
                queried = [item.id for item in await blackboard.queries.by_status(name, status, limit=limit)]
                wanted = model.query(name, status)[:limit]
                assert queried == wanted, f"the first {limit} in {name}/{status} are {queried}, the model has {wanted}"
        for state in await blackboard.agents.list():
            agent, tallies = state.agent_id, model.tallies
            told = (sorted(state.current_items), state.tasks_completed, state.tasks_failed, state.tasks_handed_back)
            wanted = (
                model.held_by(agent),
                tallies[agent, "completed"],
                tallies[agent, "failed"] + tallies[agent, "quarantined"],
                tallies[agent, "handed_back"] + tallies[agent, "revoked"],
            )
            assert told == wanted, f"agent {agent}: {told}, the model has {wanted}"
            assert bool(state.gate) == model.gated(agent, state.role)
        for item_id, thing in model.items.items():
            rows = [(row["kind"], row["agent"]) for row in await blackboard.errors(item_id)]
            assert rows == thing.errors, f"the errors of {item_id} are {rows}, the model has {thing.errors}"
        report = await audit(self.store, self.namespace, self.board.name)
        assert report.clean, "the audit found " + "; ".join(map(str, report.breaches))
        assert not report.skipped

    @staticmethod
    def _found(item: Item | None) -> dict[str, Any]:
        return {name: getattr(item, name) for name in SEEN} if item is not None else {}

    def _seen(self, thing: Thing | None) -> dict[str, Any]:
        if thing is None:
            return {}
        return {name: getattr(thing, name) for name in SEEN} | {"token": self.tokens.get(thing.token)}

    # -- choosing -----------------------------------------------------------------------------------------------------

    def one_of(self, choices: Iterable[Any]) -> Any:
        return self.random.choice(list(choices))

    def some_of(self, choices: Iterable[Any], least: int, most: int) -> list[Any]:
        return list(dict.fromkeys(self.one_of(choices) for _ in range(self.number(least, most))))

    def number(self, least: int, most: int) -> int:
        return self.random.randint(least, most)

    def an_item(self, fits: Callable[[Thing], bool]) -> tuple[str, str]:
        """Mostly one that is there and *fits*; and its section."""
        here = self.model.items.values()
        item = self.one_of([each.id for each in here if fits(each)] * 8 + [each.id for each in here] * 2 + IDS[:1])
        return item, self.model.items[item].section if item in self.model.items else self.board_sections[0]

    def an_open_claim(self) -> str:
        return self.one_of(sorted(self.open))

    # -- submitting ---------------------------------------------------------------------------------------------------

    @way(12)
    async def submit(self) -> None:
        await self._submit([self._something_new()])

    @way(5)
    async def submit_many(self) -> None:
        many = [self._something_new() for _ in range(self.number(2, 6))]
        if self.store.echo:  # of two with one id, a repeated call would not know which it had taken
            many = list({new.id: new for new in many}.values())
        await self._submit(many)

    def _something_new(self) -> New:
        fresh = [each for each in IDS if each not in self.model.items]
        section, status = self.one_of(self.entries * 3 + self.places).split("/")
        return New(
            id=self.one_of(fresh * 3 + IDS), section=section, status=status,
            payload={"n": self.number(0, 2), "list": []}, requires=self.one_of(["", "", *TAGS]),
            priority=self.number(0, 2), delay_ms=int(self.one_of(DELAYS) * 1000),
            content_hash=self.one_of(["", "", "h1", "h2"]), dedup_ms=self.one_of([0, 7500]),
        )  # fmt: skip

    async def _submit(self, many: list[New]) -> None:
        submissions = [
            Submission(
                id=new.id, section=new.section, status=new.status, payload=new.payload, requires=new.requires,
                priority=new.priority, delay_s=new.delay_ms / 1000, content_hash=new.content_hash,
                dedup_s=new.dedup_ms / 1000,
            )
            for new in many
        ]  # fmt: skip

        async def real() -> list[str]:
            return [each.duplicate_of for each in await self.blackboard.submit(*submissions)]

        await self.step(f"submit {'; '.join(map(_new, many))}", real, lambda: self.model.submit(*many))

    # -- claiming -----------------------------------------------------------------------------------------------------

    @way(16)
    async def claim(self) -> None:
        agent = self.one_of(AGENTS)
        ask = Ask(agent=agent, role=AGENTS[agent], most=self.number(1, 3), most_held=self.one_of([0, 0, 1, 2]))
        await self._claim([ask], self.one_of([TAGS, TAGS, TAGS[:1], []]), only_last=self.number(0, 5) == 0)

    @way(6)
    async def claim_together(self) -> None:
        agents, held = [self.one_of(AGENTS) for _ in range(self.number(2, 3))], self.one_of([0, 0, 1, 2])
        await self._claim(
            [Ask(agent=each, role=AGENTS[each], most=self.number(1, 2), most_held=held) for each in agents], TAGS
        )

    async def _claim(self, asks: list[Ask], tags: list[str], *, only_last: bool = False) -> None:
        offered = [each.section for each in self.model.items.values() if self.model.claimable(each)]
        section = self.one_of(offered * 3 + self.busy)
        found = self.board.sections[section]
        statuses = list(found.ready)[-1:] if only_last else list(found.ready)
        lanes = [(section, status, tag) for status in statuses for tag in ["", *tags]]
        names = self.blackboard.claims.lanes(section, statuses=statuses, capabilities=tags)
        requests = [
            ClaimRequest(
                agent_id=ask.agent, role=ask.role, lanes=names, most=ask.most, most_held=ask.most_held,
                lease_s=found.lease_s,
            )
            for ask in asks
        ]  # fmt: skip

        async def real() -> list[list[str]]:
            hands = await self.blackboard.claims.claim(*requests)
            for ask, hand in zip(asks, hands, strict=True):
                if (
                    self.model.gated(ask.agent, ask.role) and not self.store.echo
                ):  # a repeated call leaves the reason out
                    assert isinstance(hand, str), f"{ask.agent} is not told of the gate"
                self._remember([] if isinstance(hand, str) else hand)
            return [[] if isinstance(hand, str) else [each.item.id for each in hand] for hand in hands]

        def expected() -> list[list[str]]:
            return [[thing.id for thing in hand] for hand in self.model.claim(asks, lanes, int(found.lease_s * 1000))]

        who = ", ".join(f"{ask.agent} {ask.most}" + f" (holding {ask.most_held})" * bool(ask.most_held) for ask in asks)
        await self.step(f"claim {section}/{'|'.join(statuses)} {tags} for {who}", real, expected)

    @way(8)
    async def claim_item(self) -> None:
        item, section = self.an_item(lambda thing: thing.attempts > 0 or self.model.claimable(thing))
        agent, lease_s = self.one_of(AGENTS), self.one_of([2.5, self.board.sections[section].lease_s])

        async def real() -> bool:
            claimed = await self.blackboard.claims.claim_item(item, agent, role=AGENTS[agent], lease_s=lease_s)
            self._remember([claimed] if claimed else [])
            return claimed is not None

        def expected() -> bool:
            return self.model.claim_item(item, agent, AGENTS[agent], int(lease_s * 1000)) is not None

        await self.step(f"claim {item} for {agent}, {lease_s} s", real, expected)

    def _remember(self, got: list[Claimed]) -> None:
        """Keep the claims that a call gave, and see that they are what the model gave."""
        for claim, item in ((each.claim, each.item) for each in got):
            thing = self.model.items.get(item.id)
            assert thing is not None, f"{item.id} was handed out, the model has no such item"
            assert thing.token == self.model.token, f"{item.id} was handed out, but not by the model"
            token = self.tokens.setdefault(self.model.token, claim.token)
            newest = max(self.tokens[old] for old in self.tokens if old < self.model.token)
            assert token == claim.token > newest, (
                f"{item.id} has token {claim.token}, its neighbour {token}, older {newest}"
            )
            seen, wanted = self._found(item) | {"result": None}, self._seen(thing) | {"result": None}
            assert seen == wanted, f"{item.id} was handed out as\n    {seen}\n  the model has\n    {wanted}"
            assert claim.lane == lane_name(*thing.lane), f"{item.id} was claimed from {claim.lane}, not {thing.lane}"
            ends_ms = claim.ends_at_ms - self.base_ms
            assert abs(ends_ms - thing.ends_ms) < SLACK_MS, (
                f"the lease ends at {ends_ms}, the model's at {thing.ends_ms}"
            )
            name = f"{item.id}#{self.model.token}"
            self.claims[name] = (Claimed(claim=claim, item=item), self.model.token)
            self.open.add(name)

    @way(6, lambda machine: machine.claims)
    async def renew(self) -> None:
        names = self.some_of(sorted(self.claims) + sorted(self.open) * 3, 1, 3)
        claims = [self.claims[name] for name in names]

        async def real() -> list[bool]:
            try:
                answers = await self.blackboard.claims.renew([each.claim for each, _ in claims])
            except errors.UnavailableError:  # Redis was restarted; renewals are tried again by who keeps the leases
                answers = await self.blackboard.claims.renew([each.claim for each, _ in claims])
            return [not why for why in answers]

        def expected() -> list[bool]:
            return [self.model.renew(each.item.id, token, int(each.claim.lease_s * 1000)) for each, token in claims]

        await self.step(f"renew {', '.join(names)}", real, expected)

    # -- ending claims ------------------------------------------------------------------------------------------------

    def _completion(
        self, name: str, to: str | None, *, requires: str = "", patch: Any = None, delay_s: float = 0.0, result: Any = None,
        fresh: bool = False,
    ) -> Part:  # fmt: skip
        claimed, token = self.claims[name]
        place = Place.parse(to) if to else None

        async def real() -> int:
            return await self.blackboard.complete(
                claimed.claim, to, requires=requires, patch=patch, of=None if fresh else claimed.item, result=result,
                delay_s=delay_s,
            )  # fmt: skip

        def expected() -> int:
            return self.model.complete(
                claimed.item.id, token, (place.section, place.status) if place else None,
                claimed_as=(claimed.item.section, claimed.item.status), requires=requires, patch=patch, result=result,
                delay_ms=int(delay_s * 1000),
            )[1]  # fmt: skip

        facts = f"requires={requires!r} patch={_shown(patch)} result={result} delay={delay_s}"
        return f"complete {name} to {to} {facts}", real, expected

    def _failure(self, name: str, *, retry_in_s: float = 0.0, give_up: bool = False) -> Part:
        claimed, token = self.claims[name]

        async def real() -> str:
            return await self.blackboard.fail(claimed.claim, "boom", retry_in_s=retry_in_s, give_up=give_up)

        def expected() -> str:
            return self.model.fail(claimed.item.id, token, retry_in_ms=int(retry_in_s * 1000), give_up=give_up)[0]

        return f"fail {name} retry_in={retry_in_s} give_up={give_up}", real, expected

    def _hand_back(self, name: str, *, delay_s: float = 0.0) -> Part:
        claimed, token = self.claims[name]

        async def real() -> int:
            return await self.blackboard.hand_back(claimed.claim, delay_s=delay_s)

        def expected() -> int:
            return self.model.hand_back(claimed.item.id, token, delay_ms=int(delay_s * 1000))[1]

        return f"hand back {name} delay={delay_s}", real, expected

    async def _end(self, name: str, part: Part) -> None:
        answer = await self.step(*part)
        if answer is not None:
            self.open.discard(name)
            self.endings.append(part)

    def _worn_claims(self) -> list[str]:
        """Claims of items that failed or crashed before."""
        return [name for name in sorted(self.open) if self.claims[name][0].item.attempts > 1]

    def _onward(self, name: str) -> list[str]:
        """Where the board lets this claim be completed to."""
        allowed = self.board.steps[self.claims[name][0].item.status]
        return [place for place in self.places if place.split("/")[1] in allowed]

    @way(9, lambda machine: machine.open)
    async def complete(self) -> None:
        name = self.an_open_claim()
        part = self._completion(
            name, self.one_of([None] + self._onward(name) * 3 + self.places), requires=self.one_of(["", "", *TAGS]),
            patch=self.one_of(PATCHES), delay_s=self.one_of(DELAYS), result=self.one_of([None, {"ok": 1}]),
            fresh=self.one_of([False, True]),
        )  # fmt: skip
        await self._end(name, part)

    @way(7, lambda machine: machine.open)
    async def complete_as_usual(self) -> None:
        name = self.an_open_claim()
        await self._end(name, self._completion(name, self.one_of(self._onward(name))))

    @way(11, lambda machine: machine.open)
    async def fail(self) -> None:
        name = self.one_of(sorted(self.open) + self._worn_claims() * 4)
        give_up = self.number(0, 7) == 0
        await self._end(name, self._failure(name, retry_in_s=self.one_of(DELAYS), give_up=give_up))

    @way(4, lambda machine: machine.open)
    async def hand_back(self) -> None:
        name = self.an_open_claim()
        await self._end(name, self._hand_back(name, delay_s=self.one_of(DELAYS)))

    @way(5, lambda machine: len(machine.open) > 1)
    async def end_together(self) -> None:
        names = self.some_of(sorted(self.open), 2, 4)
        ways: list[Callable[[str], Part]] = [
            lambda name: self._completion(name, self._onward(name)[0], patch={"b": 2}),
            lambda name: self._failure(name, retry_in_s=2.5),
            self._failure,
            self._hand_back,
        ]
        parts = [self.one_of(ways)(name) for name in names]

        async def real() -> list[Any]:
            answers = await asyncio.gather(*(part[1]() for part in parts), return_exceptions=True)
            return [type(each) if isinstance(each, errors.RefusedError) else each for each in answers]

        answers = await self.step(
            "together: " + "; ".join(part[0] for part in parts), real, lambda: [_or_refusal(part[2]) for part in parts]
        )
        for name, part, answer in zip(names, parts, answers, strict=True):
            if not isinstance(answer, type):
                self.open.discard(name)
                self.endings.append(part)

    @way(6, lambda machine: machine.endings)
    async def repeat_an_ending(self) -> None:
        what, real, expected = self.endings[-min(self.one_of([1, 1, 1, 2, 3, 6]), len(self.endings))]
        await self.step(f"again: {what}", real, expected)

    @way(6, lambda machine: len(machine.claims) > len(machine.open))
    async def end_with_an_old_token(self) -> None:
        name = self.one_of(sorted(set(self.claims) - self.open))
        parts = [
            self._completion(name, self._onward(name)[0], patch={"stale": True}, fresh=True),
            self._failure(name, give_up=self.one_of([False, True])),
            self._hand_back(name, delay_s=2.5),
        ]
        what, real, expected = self.one_of(parts)
        await self.step(f"old: {what}", real, expected)

    @way(4, lambda machine: machine.open)
    async def kill(self) -> None:
        agent = self.one_of(sorted({self.claims[name][0].claim.agent_id for name in self.open}))
        gone = {name for name in self.open if self.claims[name][0].claim.agent_id == agent}
        self.story.append(f"         {agent} dies with {', '.join(sorted(gone))}")
        self.open -= gone

    # -- changing without a claim -------------------------------------------------------------------------------------

    @way(5)
    async def update(self) -> None:
        item, section = self.an_item(lambda thing: not thing.holder)
        patch, priority = self.one_of(PATCHES) or {}, self.one_of([None, None, 0, 2])

        async def real() -> bool:
            return await self.blackboard.update(section, item, patch, priority=priority)

        def expected() -> bool:
            return self.model.update(section, item, patch, priority) is None

        await self.step(f"update {section} {item} {_shown(patch)} priority={priority}", real, expected)

    @way(4, lambda machine: machine.open)
    async def update_what_is_held(self) -> None:
        name, patch = self.an_open_claim(), self.one_of(PATCHES) or {}
        claimed, token = self.claims[name]
        thing = self.model.items.get(claimed.item.id)
        section = thing.section if thing else claimed.item.section

        async def real() -> bool:
            self.blackboard.leases.keep(claimed.claim)
            try:
                return await self.blackboard.update(section, claimed.item.id, patch)
            finally:
                self.blackboard.leases.drop(claimed.claim)

        def expected() -> bool:
            return self.model.update(section, claimed.item.id, patch, token=token) is None

        await self.step(f"update {section} {name} {_shown(patch)}", real, expected)

    @way(4)
    async def move(self) -> None:
        item, section = self.an_item(lambda thing: not thing.holder)
        thing = self.model.items.get(item)
        allowed = self.board.steps.get(thing.status, ()) if thing else ()
        to = self.one_of([place for place in self.places if place.split("/")[1] in allowed] * 4 + self.places)
        section = self.one_of([section] * 6 + self.board_sections)
        place, requires, patch = Place.parse(to), self.one_of(["", *TAGS]), self.one_of(PATCHES)

        async def real() -> bool:
            return await self.blackboard.move(
                item, section, place.section, patch, status=place.status, requires=requires
            )

        def expected() -> bool:
            target = (place.section, place.status)
            return self.model.move(item, section, target, requires=requires, patch=patch) is None

        await self.step(f"move {item} from {section} to {to} requires={requires!r} {_shown(patch)}", real, expected)

    @way(2, lambda machine: machine.model.items)
    async def take_a_step(self) -> None:
        item, section = self.an_item(lambda thing: not thing.holder)
        thing = self.model.items.get(item)
        allowed = self.board.steps.get(thing.status, ()) if thing else ()
        status = self.one_of(sorted(allowed) or [place.split("/")[1] for place in self.places])
        home = (
            section
            if status in self.board.sections[section].statuses
            else next(name for name, each in self.board.sections.items() if status in each.statuses)
        )

        async def real() -> bool:
            return await self.blackboard.transition_status(section, item, status)

        def expected() -> bool:
            return self.model.move(item, section, (home, status), requires=thing.requires if thing else "") is None

        await self.step(f"transition {item} to {status}", real, expected)

    @way(1)
    @way(8, lambda machine: any(each.status == machine.board.quarantine for each in machine.model.items.values()))
    async def release(self) -> None:
        item, _ = self.an_item(lambda thing: thing.status == self.board.quarantine)
        await self.step(f"release {item}", lambda: self.blackboard.release(item), lambda: self.model.release(item))

    @way(1)
    @way(3, lambda machine: any(each.due_ms for each in machine.model.items.values()))
    async def retry(self) -> None:
        item, _ = self.an_item(lambda thing: bool(thing.due_ms) or thing.status == self.board.quarantine)
        await self.step(f"retry {item}", lambda: self.blackboard.retry(item), lambda: self.model.retry(item))

    @way(1)
    async def archive(self) -> None:
        item, _ = self.an_item(lambda thing: not thing.holder)
        await self.step(f"archive {item}", lambda: self.blackboard.archive(item), lambda: self.model.archive(item))

    @way(2)
    async def delete(self) -> None:
        item, section = self.an_item(lambda thing: not thing.holder)
        section = self.one_of([section] * 6 + self.board_sections)
        self.store.echo = False  # who repeats it is told that there is nothing left to delete
        await self.step(
            f"delete {section} {item}",
            lambda: self.blackboard.delete(section, item),
            lambda: self.model.delete(section, item),
        )

    # -- agents, time, the server -------------------------------------------------------------------------------------

    @way(1)
    async def revoke(self) -> None:
        agent = self.one_of(AGENTS)
        await self.step(
            f"revoke {agent}", lambda: self.blackboard.agents.revoke(agent), lambda: self.model.revoke(agent)
        )

    @way(1)
    async def pause(self) -> None:
        who = self.one_of(GATES)
        await self.step(f"pause {who}", lambda: self.blackboard.agents.pause(who), lambda: self.model.pause(who))

    @way(40, lambda machine: machine.model.gates)
    async def resume(self) -> None:
        who = self.one_of(sorted(self.model.gates) * 4 + GATES)
        await self.step(f"resume {who}", lambda: self.blackboard.agents.resume(who), lambda: self.model.resume(who))

    @way(12)
    async def advance(self) -> None:
        self.model.advance(self.number(1, 7) * 1000)

    @way(2)
    async def reap(self) -> None:
        lanes = {thing.lane for thing in self.model.items.values()}
        ready = sorted(lane for lane in lanes if lane[1] in self.board.sections[lane[0]].ready)
        if ready:
            self.store.echo = False  # who repeats it is told how many it took back the second time
            names = [lane_name(*lane) for lane in ready]
            await self.step("reap", lambda: self.blackboard.claims.reap(names), lambda: self.model.reap(ready))

    @way(6)
    async def trim_the_log(self) -> None:
        keep = self.number(1, 12)
        self.story.append(f"         the log is trimmed to {keep} entries")
        bound = LogBound(entries=keep, at_least_s=0)
        await Retention(self.store, self.blackboard.keys, self.board, bound).trim_events()

    @way(2)
    async def purge_marks(self) -> None:
        self.store.echo = False  # who repeats it is told that nothing was left
        keeper = Retention(self.store, self.blackboard.keys, self.board)
        await self.step("purge marks", keeper.purge_marks, self.model.purge_marks)

    @way(10)
    async def lose_the_next_reply(self) -> None:
        self.store.echo = True

    @way(1, lambda machine: machine.steps > 5)
    async def restart_redis(self) -> None:
        if self.number(1, 3) == 1:
            self.story.append("         Redis is restarted")
            self.server.restart()
            await self.store.command("PING")  # waits until it answers


def _or_refusal(expected: Callable[[], Any]) -> Any:
    try:
        return expected()
    except Refused as refused:
        return refused.error


def _new(new: New) -> str:
    facts = f"requires={new.requires!r} priority={new.priority} delay={new.delay_ms / 1000}"
    return f"{new.id} in {new.section}/{new.status} {facts} hash={new.content_hash!r} for {new.dedup_ms / 1000} s"


def _shown(what: Any) -> str:
    text = what.__name__ if isinstance(what, type) else repr(what)
    return text if len(text) < 200 else text[:100] + "…"


class Life(RuleBasedStateMachine):
    """A `Machine` that Hypothesis leads. When the computer stood still, the same steps are done again on a fresh one."""

    server: RedisServer
    board: Board

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stalls = 0
        self.agreed = True
        self.machine = self._begin()

    def _begin(self) -> Machine:
        machine = Machine(self.server, self.board)
        self.runner.run(machine.__aenter__())
        return machine

    def _end(self) -> None:
        self.runner.run(self.machine.__aexit__())

    def _go(self, way: str, seed: int) -> None:
        steps = [(way, seed)]
        while True:
            try:
                for each in steps:
                    self.runner.run(self.machine.go(*each))
            except TooSlow:
                self.stalls += 1
                if self.stalls > STALLS:
                    reject()
                steps = [*self.machine.done, *steps[steps.index(each) + 1 :]]
                self._end()
                self.machine = self._begin()
            else:
                return

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        way = data.draw(st.sampled_from(self.machine.ways()))
        seed = data.draw(st.integers(0, 2**48))
        try:
            self._go(way, seed)
        except AssertionError:
            self.agreed = False
            raise

    def teardown(self) -> None:
        try:
            if self.agreed:
                self.runner.run(self.machine.compare())
        finally:
            note("by the board's clock:\n" + "\n".join(self.machine.story))
            self._end()
            self.runner.close()


@pytest.mark.timeout(0 if EXAMPLES else 600)  # Hypothesis shortens what failed for up to 300 s
@pytest.mark.parametrize(
    ("on", "examples"), [pytest.param(DESK, 100, id="desk"), pytest.param(NEWS.with_lease(6.5), 50, id="news")]
)
def test_the_board_does_what_the_model_says(
    lasting_server: RedisServer, on: Board, examples: int, request: pytest.FixtureRequest
) -> None:
    class LifeHere(Life):
        server = lasting_server
        board = on

    hunted = request.config.getoption("--mutant")  # then it is enough to know that it fails
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        LifeHere,
        settings=settings(
            max_examples=EXAMPLES or examples, stateful_step_count=STEPS, derandomize=not EXAMPLES, deadline=None,
            suppress_health_check=list(HealthCheck), phases=set(Phase) - ({Phase.shrink} if hunted else set()),
        ),
    )  # fmt: skip
