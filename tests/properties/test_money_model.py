"""Calls, limits and time in any order: the ledger in Redis and the one in plain Python answer and hold the same.

As in ``test_board_model``: Hypothesis picks each step, a random generator that it seeds picks what the step is done to,
and the board's clock is set before each step. It stands at a night of its own, half an hour before a day begins.

``SWARM_MODEL_EXAMPLES=5000`` looks for longer and elsewhere each time; ``--hypothesis-seed=7`` says where.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from random import Random
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from money_model import THRESHOLDS, UNITS, WINDOWS, Amounts, Breach, Limit, MoneyModel, Who
from test_board_model import EXAMPLES, STEPS, EchoStore, Life, Machine

from swarm_infrastructure.blackboard import Blackboard, job_board
from swarm_infrastructure.cost_manager import AgentBudget, Budget, Ledger, LedgerBound, audit_money
from swarm_infrastructure.cost_manager.budgets import Spender
from swarm_infrastructure.cost_manager.ledger import Reservation
from swarm_infrastructure.errors import BudgetExceededError
from swarm_infrastructure.failure_recovery import Steps
from swarm_infrastructure.testing import RedisServer

BOARD = job_board("money")
BEGINS_MS = round(datetime(2026, 2, 28, 23, 30, tzinfo=UTC).timestamp() * 1000)
AGENTS = {"ada": "reader", "bob": "reader", "cyd": "maker"}
TASKS, TIERS, TAGS = ["script_1", "script_2"], ["fast", "premium"], ["ink", "glue"]
SCOPES = ["swarm", "agent:ada", "agent:cyd", "role:reader", "task:script_1", "tag:ink", "tier:premium"]
PARTS = ["agent:ada/task", "agent:ada/tier:premium"]
GATES = ["agent:ada", "role:reader", "*"]
HOLDS_S = [2.5, 4.5, 8.5, 30.5]  # they end at half seconds, which the clock never shows
LIMITS = [0, 20, 40, 60, 100, 200]
REMEMBERED = 15  # a call looks at 20 reservations that have ended

WAYS: list[tuple[int, str, Callable[[Any], bool]]] = []


def way(often: int, when: Callable[[Any], bool] = lambda _machine: True) -> Callable[[Any], Any]:
    """A method that does one step; *often* as compared with the others."""

    def register(method: Any) -> Any:
        WAYS.append((often, method.__name__, when))
        return method

    return register


class MoneyMachine(Machine):
    """The model and the ledger, side by side."""

    numbers: ClassVar = itertools.count()

    def __init__(self, server: RedisServer) -> None:
        self.server, self.board = server, BOARD
        self.model: Any = MoneyModel(BEGINS_MS)
        self.namespace = f"money{next(self.numbers)}"
        self.store = EchoStore(server.url)
        self.blackboard = Blackboard(self.store, BOARD, namespace=self.namespace)
        self.ledger = Ledger(self.store, self.blackboard.keys, ZoneInfo("UTC"))
        self.base_ms, self.offset_ms = BEGINS_MS, 0
        self.trimmed: list[tuple[Any, ...]] = []  # lines that went from the ledger
        self.calls: dict[str, tuple[Who, Amounts]] = {}  # every one that was ever reserved
        self.done: list[tuple[str, int]] = []
        self.story: list[str] = []
        self.random = Random(0)
        self.steps = 0

    async def __aenter__(self) -> MoneyMachine:
        await self.store.__aenter__()
        await self.blackboard.__aenter__()
        await self._set_clock()
        return self

    def ways(self) -> list[str]:
        return [name for often, name, when in WAYS if when(self) for _ in range(often)]

    async def step(self, what: str, real: Callable[[], Awaitable[Any]], expected: Callable[[], Any]) -> Any:
        def opened() -> Any:
            answer = expected()
            self.model.open_gates()
            return answer

        return await super().step(what, real, opened)

    # -- comparing ----------------------------------------------------------------------------------------------------

    async def compare(self) -> None:
        await self._set_clock()  # the last step may have been time that passed, which opens gates
        await super().compare()

    async def _compare(self, *, everything: bool) -> None:
        model, ledger = self.model, self.ledger
        counters = {field: list(row[:6]) for field, row in (await ledger.counters()).items() if any(row[:6])}
        wanted = {field: row for field, row in model.counters().items() if any(row)}
        assert counters == wanted, f"the counters are\n    {counters}\n  the model has\n    {wanted}"
        assert all(number >= 0 for row in counters.values() for number in row)
        model.open_gates()  # time alone opens some
        told = await self.blackboard.agents.beat_all([(agent, role, None) for agent, role in AGENTS.items()])
        shut = [gate for gate, _ in told]
        found = {agent: bool(gate) for agent, gate in zip(AGENTS, shut, strict=True)}
        still = {agent: model.stands_still(agent, role) for agent, role in AGENTS.items()}
        assert found == still, f"gates: {dict(zip(AGENTS, shut, strict=True))}, the model has {model.gates}"
        if not everything:
            return
        remembered: dict[str, Any] = {id: row[:4] for id, row in (await ledger.reservations()).items()}
        assert remembered == model.remembered()
        limits = {name: (dict(each.most), each.on_exceeded) for name, each in (await ledger.limits()).items()}
        assert limits == {name: (each.most, each.breach) for name, each in model.limits.items()}
        entries = await self._lines()
        assert sorted(entries + self.trimmed) == sorted(
            model.entries
        )  # which of two that end together comes first does not matter
        for (item, step), answer in model.answers.items():
            assert await Steps(self.store, self.blackboard.keys).find(item, step) == answer
        breaches = await audit_money(ledger)
        assert not breaches, "the audit found " + "; ".join(map(str, breaches))

    async def _lines(self) -> list[tuple[Any, ...]]:
        return [
            (each.reservation, each.kind, (each.usd, each.tokens, each.requests))
            async for each in self.ledger.entries()
        ]

    # -- choosing -----------------------------------------------------------------------------------------------------

    def _who(self) -> Who:
        agent = self.one_of([*AGENTS, "ada", ""])
        return Who(
            agent=agent, role=AGENTS.get(agent, ""), task=self.one_of([*TASKS, ""]), tier=self.one_of([*TIERS, ""]),
            tags=self.one_of([(), ("ink",), tuple(TAGS)]),
        )  # fmt: skip

    def _amounts(self) -> Amounts:
        return self.number(0, 30), self.number(0, 30), 1

    def _used(self, id: str) -> Amounts:
        """What a call used in the end: mostly less than was held for it."""
        usd, tokens, _ = self.calls[id][1]
        share = self.one_of([0, 0.3, 0.5, 0.9, 1, 1.4])
        return int(usd * share), int(tokens * share), 1

    def _a_call(self, *states: str) -> str:
        """Mostly one in one of these states; sometimes any that ever was, or none that ever was."""
        model: MoneyModel = self.model
        fit = [id for id, held in model.reservations.items() if held.state in states]
        return str(self.one_of(fit * 10 + list(self.calls)[-8:] + ["nobody"]))

    def any_is(self, state: str) -> bool:
        return any(held.state == state for held in self.model.reservations.values())

    def _handle(self, id: str, who: Who, amounts: Amounts) -> Reservation:
        usd, tokens, requests = amounts
        return Reservation(id=id, spender=_spender(who), usd=usd, tokens=tokens, requests=requests)

    # -- calls --------------------------------------------------------------------------------------------------------

    @way(30)
    async def reserve(self) -> None:
        await self._reserve(f"c{self.steps}", self._who(), self._amounts())

    @way(4, lambda machine: machine.calls)
    async def reserve_again(self) -> None:
        id = self.one_of(list(self.calls)[-5:])
        await self._reserve(id, *self.calls[id])

    async def _reserve(self, id: str, who: Who, amounts: Amounts) -> None:
        new_hour = (
            self.ledger.windows().hour != self.model.windows()["hour"]
        )  # then it is sent twice, and ends holds before
        if new_hour or self.model.due() > REMEMBERED:
            await self.expire()
        sent, pause, hold_s = self.number(0, 3) == 0, self.number(0, 3) > 0, self.one_of(HOLDS_S)
        usd, tokens, requests = amounts
        counters: dict[str, tuple[int, ...]] = {}

        async def real() -> Any:
            try:
                await self.ledger.reserve(
                    _spender(who), usd, tokens, requests=requests, sent=sent, hold_s=hold_s, pause=pause, id=id
                )
            except BudgetExceededError as error:
                return _as_breach(error)
            counters.update(await self.ledger.counters())
            return None

        def expected() -> Any:
            return self.model.reserve(id, who, amounts, sent=sent, hold_ms=int(hold_s * 1000), pause=pause)

        known = id in self.model.reservations
        answer = await self.step(f"reserve {id} {amounts} sent={sent} pause={pause} for {who}", real, expected)
        if answer is None:
            self.calls[id] = (who, amounts)
        if answer is None and not known:
            self._nothing_is_over(who, counters)

    def _nothing_is_over(self, who: Who, counters: dict[str, tuple[int, ...]]) -> None:
        """What was just admitted fits under every limit that it falls under."""
        model: MoneyModel = self.model
        for (window, scope), name in model.rows(who):
            row, limit = counters[f"{window}|{scope}"], model.limits.get(name, Limit())
            for (long, unit), most in limit.most.items():
                at = UNITS.index(unit)
                assert long[0] != window[0] or row[2 * at] + row[2 * at + 1] <= most, f"{scope} is over its {long}"

    @way(1, lambda machine: machine.calls)
    @way(16, lambda machine: machine.any_is("open"))
    async def mark_sent(self) -> None:
        id, hold_s = self._a_call("open"), self.one_of(HOLDS_S)
        handle = self._handle(id, *self.calls.get(id, (Who(), (0, 0, 1))))

        await self.step(
            f"mark sent {id}",
            lambda: self.ledger.mark_sent(handle, hold_s=hold_s),
            lambda: self.model.mark_sent(id, int(hold_s * 1000)),
        )

    @way(3, lambda machine: machine.calls)
    @way(12, lambda machine: machine.any_is("sent"))
    @way(12, lambda machine: machine.any_is("unknown"))
    async def settle(self) -> None:
        id = self._a_call("sent", "sent", "open", "unknown")
        if id != "nobody":
            await self._settle(id, self.calls[id][0], self._used(id))

    @way(5, lambda machine: machine.model.entries)
    async def settle_again(self) -> None:
        id = self._a_call("settled", "unknown", "released")
        if id != "nobody":
            await self._settle(id, self.calls.get(id, (Who(), (0, 0, 1)))[0], self._amounts())

    @way(4)
    async def record(self) -> None:
        """What nothing was reserved for."""
        id, who, amounts = f"r{self.steps}", self._who(), self._amounts()
        self.calls[id] = (who, amounts)
        await self._settle(id, who, amounts)

    async def _settle(self, id: str, who: Who, amounts: Amounts) -> None:
        item, step = self.one_of(TASKS), self.one_of(["", "", "write", "check"])
        answer, twice = f"{id} says {self.number(0, 9)}".encode(), self.store.echo
        handle = self._handle(id, who, amounts)
        known = (
            self.ledger.windows()
        )  # a call that nothing was reserved for is booked by the clock as far as it is known
        rows = self.model.rows(who, {"total": "t", "day": known.day, "hour": known.hour})

        async def real() -> list[tuple[str, str, str]]:
            told = await self.ledger.settle(
                handle, amounts[0], amounts[1], requests=amounts[2], item_id=item, step=step, answer=answer
            )
            return [(each.scope, each.window, f"{each.threshold:g}") for each in told]

        def expected() -> list[tuple[str, str, str]]:
            told = self.model.settle(id, amounts, rows, item=item, step=step, answer=answer)
            return [] if twice else told  # the first reply, which was lost, had them

        await self.step(f"settle {id} {amounts} step={step!r}", real, expected)

    @way(1, lambda machine: machine.calls)
    @way(6, lambda machine: machine.any_is("open"))
    async def release(self) -> None:
        id = self._a_call("open", "open", "sent")
        handle = self._handle(id, *self.calls.get(id, (Who(), (0, 0, 1))))
        await self.step(f"release {id}", lambda: self.ledger.release(handle), lambda: self.model.release(id))

    # -- time ---------------------------------------------------------------------------------------------------------

    @way(4)
    async def expire(self) -> None:
        self.store.echo = False  # who repeats it is told that there is nothing left to end
        await self.step("expire", self.ledger.expire, lambda: self.model.expire())

    @way(12)
    @way(12, lambda machine: machine.any_is("open") or machine.any_is("sent"))
    async def advance(self) -> None:
        self.model.advance(self.number(1, 9) * 1000)

    @way(3)
    @way(12, lambda machine: any(gate.resumes_ms for gate in machine.model.gates.values()))
    async def advance_to_the_next_hour(self) -> None:
        into_ms = (BEGINS_MS + self.model.now_ms) % 3_600_000
        self.model.advance(3_600_000 - into_ms + self.number(1, 9) * 1000)

    @way(1)
    async def advance_by_a_day(self) -> None:
        self.model.advance(86_400_000 + self.number(1, 9) * 1000)

    @way(8)
    async def lose_the_next_reply(self) -> None:
        self.store.echo = True

    # -- limits and gates ---------------------------------------------------------------------------------------------

    @way(14)
    async def change_a_limit(self) -> None:
        name, window, unit = self.one_of(SCOPES + PARTS), self.one_of(WINDOWS), self.one_of(["usd", "usd", *UNITS])
        amount = self.one_of([None, *LIMITS])

        async def real() -> dict[tuple[str, str], int]:
            return dict((await self.ledger.change_limit(name, window, unit, amount)).most)

        await self.step(
            f"limit of {name} per {window}: {amount} {unit}",
            real, lambda: dict(self.model.change_limit(name, window, unit, amount)),
        )  # fmt: skip

    @way(10, lambda machine: machine.model.gates)
    async def lift_what_stops_an_agent(self) -> None:
        rows = [(gate.row, gate.unit) for gate in self.model.gates.values() if gate.row is not None]
        if not rows:
            return
        ((window, _), name), unit = self.one_of(rows)
        long = next(each for each in WINDOWS if each[0] == window[0])
        most = self.model.limits[name].most[long, UNITS[unit]] if name in self.model.limits else 0

        async def real() -> dict[tuple[str, str], int]:
            return dict((await self.ledger.change_limit(name, long, UNITS[unit], most + 20)).most)

        await self.step(
            f"raise {name} per {long} to {most + 20} {UNITS[unit]}",
            real, lambda: dict(self.model.change_limit(name, long, UNITS[unit], most + 20)),
        )  # fmt: skip

    @way(5)
    async def set_a_budget(self) -> None:
        scope, breach = self.one_of(SCOPES), self.one_of(["pause", "pause", "downgrade", "fail"])
        day, hour, run = (self.one_of([None, *LIMITS]) for _ in range(3))
        tokens, requests = self.one_of([None, 50, 100]), self.one_of([None, 3, 6])
        amounts = {("day", "usd"): day, ("hour", "usd"): hour, ("total", "usd"): run}
        amounts |= {("day", "tokens"): tokens, ("day", "requests"): requests}
        most = {name: amount for name, amount in amounts.items() if amount is not None}
        limits = {scope: Limit(most=most, breach=breach)}
        how: dict[str, Any] = {
            "daily_limit": _dollars(day), "hourly_limit": _dollars(hour), "run_limit": _dollars(run),
            "max_tokens": tokens, "max_requests": requests, "on_exceeded": breach, "alert_threshold": 0.5,
        }  # fmt: skip
        if scope.startswith("agent:"):
            task, shares = self.one_of([None, 30]), {"premium": 0.5} if day is not None and self.number(0, 1) else {}
            if task is not None:
                limits[f"{scope}/task"] = Limit(most={("total", "usd"): task}, breach=breach)
            if shares:
                limits[f"{scope}/tier:premium"] = Limit(most={("day", "usd"): (day or 0) // 2}, breach=breach)
            how |= {"task_limit": _dollars(task), "tier_limits": shares}
            budget: Budget = AgentBudget(agent_id=scope.removeprefix("agent:"), **how)
        else:
            budget = Budget(scope=scope, **how)
        await self.step(
            f"budget of {scope}: {limits}",
            lambda: self.ledger.set_budget(budget), lambda: self.model.set_budget(scope, limits),
        )  # fmt: skip

    @way(6)
    async def trim_the_ledger(self) -> None:
        keep = self.number(1, 6)
        self.story.append(f"         the ledger is trimmed to {keep} lines")
        self.ledger.bound = LedgerBound(lines=keep)
        before = await self._lines()
        await self.ledger.trim()
        self.trimmed += before[: len(before) - len(await self._lines())]

    @way(1)
    async def pause(self) -> None:
        who = self.one_of(GATES)
        await self.step(f"pause {who}", lambda: self.blackboard.agents.pause(who), lambda: self.model.pause(who))

    @way(6, lambda machine: any(gate.row is None for gate in machine.model.gates.values()))
    async def resume(self) -> None:
        who = self.one_of([who for who, gate in self.model.gates.items() if gate.row is None])
        await self.step(f"resume {who}", lambda: self.blackboard.agents.resume(who), lambda: self.model.resume(who))


def _spender(who: Who) -> Spender:
    return Spender(agent_id=who.agent, role=who.role, task_id=who.task, tier=who.tier, tags=who.tags)


def _dollars(nano: int | None) -> Decimal | None:
    return None if nano is None else Decimal(nano).scaleb(-9)


def _as_breach(error: BudgetExceededError) -> Breach:
    def whole(amount: float) -> int:
        return round(amount * (10**9 if error.unit == "usd" else 1))

    return Breach(
        error.scope, error.window, error.unit, whole(error.needed), whole(error.left), whole(error.limit),
        error.on_breach, error.resumes_at_ms, whole(error.held),
    )  # fmt: skip


class MoneyLife(Life):
    """A `MoneyMachine` that Hypothesis leads."""

    def _begin(self) -> Any:
        machine = MoneyMachine(self.server)
        self.runner.run(machine.__aenter__())
        return machine


@pytest.mark.timeout(0 if EXAMPLES else 600)
def test_the_ledger_does_what_the_model_says(lasting_server: RedisServer, request: pytest.FixtureRequest) -> None:
    class LifeHere(MoneyLife):
        server = lasting_server
        board = BOARD

    assert Budget().alert_threshold == float(THRESHOLDS[0])
    hunted = request.config.getoption("--mutant")  # then it is enough to know that it fails
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        LifeHere,
        settings=settings(
            max_examples=EXAMPLES or 100, stateful_step_count=STEPS, derandomize=not EXAMPLES, deadline=None,
            suppress_health_check=list(HealthCheck), phases=set(Phase) - ({Phase.shrink} if hunted else set()),
        ),
    )  # fmt: skip
