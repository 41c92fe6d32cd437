"""Debates in any order: those in Redis and those in plain Python give the same answers and hold the same.

As in ``test_board_model``: Hypothesis picks each step, a random generator that it seeds picks what the step is done to,
and the board's clock is set before each step. Deadlines and memories end at half seconds, which the clock never shows.

``SWARM_MODEL_EXAMPLES=5000`` looks for longer and elsewhere each time; ``--hypothesis-seed=7`` says where.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from random import Random
from typing import Any, ClassVar

import pytest
from debate_model import DebateModel, Facts
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from test_board_model import EXAMPLES, STEPS, EchoStore, Life, Machine

from swarm_infrastructure.blackboard import Blackboard, job_board
from swarm_infrastructure.consensus import Debates, Verdict, audit_debates
from swarm_infrastructure.testing import RedisServer

BOARD = job_board("debates")
IDS = ["d1", "d2", "d3"]
AGENTS = {"ada": "pro", "bob": "contra", "cyd": "neutral", "dan": "pro", "eve": "contra"}
OPTIONS = [("publish", "reject"), ("publish", "reject", "wait")]

WAYS: list[tuple[int, str, Callable[[Any], bool]]] = []


def way(often: int, when: Callable[[Any], bool] = lambda _machine: True) -> Callable[[Any], Any]:
    """A method that does one step; *often* as compared with the others."""

    def register(method: Any) -> Any:
        WAYS.append((often, method.__name__, when))
        return method

    return register


class DebateMachine(Machine):
    """The model and the debates, side by side."""

    numbers: ClassVar = itertools.count()

    def __init__(self, server: RedisServer) -> None:
        self.server, self.board = server, BOARD
        self.model: Any = DebateModel()
        self.namespace = f"debates{next(self.numbers)}"
        self.store = EchoStore(server.url)
        self.blackboard = Blackboard(self.store, BOARD, namespace=self.namespace)
        self.ends: list[str] = []  # announced
        self.debates = Debates(self.store, self.blackboard.keys, self._announce)
        self.base_ms, self.offset_ms = int(time.time()) * 1000, 0
        self.done: list[tuple[str, int]] = []
        self.story: list[str] = []
        self.random = Random(0)
        self.steps = 0

    async def _announce(self, kind: str, facts: Any) -> None:
        if kind == "debate.consensus":
            self.ends.append(facts["debate_id"])

    async def __aenter__(self) -> DebateMachine:
        await self.store.__aenter__()
        await self.blackboard.__aenter__()
        await self._set_clock()
        return self

    def ways(self) -> list[str]:
        return [name for often, name, when in WAYS if when(self) for _ in range(often)]

    async def step(self, what: str, real: Any, expected: Any) -> Any:
        before = {each: held for each, held in self.model.debates.items() if held.verdict is None}
        self.ends.clear()
        answer = await super().step(what, real, expected)
        ended = [each for each, held in before.items() if held.verdict is not None]
        opened_and_ended = [each for each in self.ends if each not in before]
        assert sorted(self.ends) == sorted(ended + opened_and_ended), f"{what}: announced {self.ends}, ended {ended}"
        return answer

    # -- comparing ----------------------------------------------------------------------------------------------------

    async def compare(self) -> None:
        await self._set_clock()  # the last step may have been time that passed
        await super().compare()

    async def _compare(self, *, everything: bool) -> None:
        for agent, role in AGENTS.items():
            found = sorted(each.id for each in await self.debates.open_debates(agent, role))
            assert found == self.model.open_for(agent, role), f"open for {agent}: {found}"
        for debate_id, held in self.model.debates.items():
            votes = {
                each.agent_id: (each.choice, round(each.confidence * 10))
                for each in await self.debates.votes(debate_id)
            }
            assert votes == held.votes, f"{debate_id} has the votes {votes}, the model {held.votes}"
            arguments = [(each.agent_id, each.position) for each in await self.debates.arguments(debate_id)]
            assert arguments == held.arguments
        if everything:
            breaches = await audit_debates(self.store, self.blackboard.keys, overdue_s=3600)
            assert not breaches, "the audit found " + "; ".join(map(str, breaches))
            left = await self.store.command("KEYS", self.blackboard.keys.debate("*").record)
            assert len(left) == len(self.model.debates)

    # -- choosing -----------------------------------------------------------------------------------------------------

    def _facts(self) -> Facts:
        voters, roles = self.one_of(
            [([], []), (sorted(AGENTS), []), (["ada", "bob", "cyd"], []), (["ada"], ["contra"])]
        )
        expected = len(voters) if voters and not roles else self.one_of([0, 2, 3, 5])
        return {
            "options": self.one_of(OPTIONS), "voters": voters, "roles": roles, "expected": expected,
            "quorum": self.number(1, min(3, expected or 3)), "threshold": self.one_of([0.3, 0.5, 0.6, 1]),
            "weighted": self.one_of([True, True, False]), "deadline_s": self.one_of([4.5, 9.5, 20.5]),
            "keep_s": self.one_of([0.5, 5.5, 60.5]), "arguments_each": self.one_of([1, 2]), "arguments_most": 3,
        }  # fmt: skip

    def _a_debate(self) -> str:
        here = self.model.debates
        live = [each for each, held in here.items() if held.verdict is None]
        return str(self.one_of(live * 10 + list(here) * 2 + IDS[:1]))

    def _options(self, debate_id: str) -> list[str]:
        held = self.model.debates.get(debate_id)
        return list(held.facts["options"] if held else OPTIONS[0])

    def _an_agent(self) -> tuple[str, str]:
        agent = self.one_of(AGENTS)
        return agent, AGENTS[agent]

    # -- steps --------------------------------------------------------------------------------------------------------

    @way(4)
    @way(12, lambda machine: len(machine.model.debates) < len(IDS))
    async def open(self) -> None:
        debate_id = self.one_of(IDS)
        held = self.model.debates.get(debate_id)
        facts = held.facts if held and self.number(0, 2) else self._facts()

        async def real() -> Any:
            return _seen((await self.debates.open(debate_id, "?", **facts)).verdict)

        await self.step(f"open {debate_id} {facts}", real, lambda: self.model.open(debate_id, facts))

    @way(8)
    async def argue(self) -> None:
        debate_id, (agent, role) = self._a_debate(), self._an_agent()
        position = self.one_of([*self._options(debate_id), ""])

        async def real() -> Any:
            argument = await self.debates.argue(debate_id, agent, position, "because", role=role)
            return argument.number if argument else None

        await self.step(
            f"{agent} argues in {debate_id} for {position!r}",
            real,
            lambda: self.model.argue(debate_id, agent, role, position),
        )

    @way(40)
    async def vote(self) -> None:
        debate_id, (agent, role) = self._a_debate(), self._an_agent()
        options = self._options(debate_id)
        choice, tenths = self.one_of([*options, options[0], options[0]]), self.one_of([0, 2, 5, 9, 10, 10])
        await self._vote(debate_id, agent, role, choice, tenths)

    @way(6, lambda machine: any(held.votes for held in machine.model.debates.values()))
    async def vote_the_same_again(self) -> None:
        cast = [(each, agent) for each, held in self.model.debates.items() for agent in held.votes]
        debate_id, agent = self.one_of(cast)
        await self._vote(debate_id, agent, AGENTS[agent], *self.model.debates[debate_id].votes[agent])

    async def _vote(self, debate_id: str, agent: str, role: str, choice: str, tenths: int) -> None:
        async def real() -> Any:
            cast = await self.debates.vote(debate_id, agent, choice, tenths / 10, role=role)
            return cast.counted, cast.closed, _seen(cast.debate.verdict)

        await self.step(
            f"{agent} votes in {debate_id} for {choice} ({tenths / 10})",
            real, lambda: self.model.vote(debate_id, agent, role, choice, tenths),
        )  # fmt: skip

    @way(6)
    async def look(self) -> None:
        debate_id = self._a_debate()

        async def real() -> Any:
            return _seen(await self.debates.outcome(debate_id))

        await self.step(f"look at {debate_id}", real, lambda: self.model.outcome(debate_id))

    @way(2)
    async def cancel(self) -> None:
        debate_id = self._a_debate()

        async def real() -> Any:
            return _seen(await self.debates.cancel(debate_id))

        await self.step(f"cancel {debate_id}", real, lambda: self.model.cancel(debate_id))

    @way(2)
    async def forget(self) -> None:
        debate_id = self.one_of(IDS)
        self.store.echo = False  # who repeats it is told that it is gone
        await self.step(
            f"forget {debate_id}", lambda: self.debates.forget(debate_id), lambda: self.model.forget(debate_id)
        )

    @way(4)
    async def sweep(self) -> None:
        await self.step("sweep", self.debates.sweep, lambda: self.model.sweep())

    @way(8)
    async def advance(self) -> None:
        self.model.advance(self.number(1, 6) * 1000)

    @way(6)
    async def lose_the_next_reply(self) -> None:
        self.store.echo = True


def _seen(verdict: Verdict | None) -> Any:
    return verdict and (str(verdict.outcome), verdict.position, verdict.how, verdict.votes)


class DebateLife(Life):
    """A `DebateMachine` that Hypothesis leads."""

    def _begin(self) -> Any:
        machine = DebateMachine(self.server)
        self.runner.run(machine.__aenter__())
        return machine


@pytest.mark.timeout(0 if EXAMPLES else 600)
def test_debates_do_what_the_model_says(lasting_server: RedisServer, request: pytest.FixtureRequest) -> None:
    class LifeHere(DebateLife):
        server = lasting_server
        board = BOARD

    hunted = request.config.getoption("--mutant")  # then it is enough to know that it fails
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        LifeHere,
        settings=settings(
            max_examples=EXAMPLES or 60, stateful_step_count=STEPS, derandomize=not EXAMPLES, deadline=None,
            suppress_health_check=list(HealthCheck), phases=set(Phase) - ({Phase.shrink} if hunted else set()),
        ),
    )  # fmt: skip
