"""The crash table: a worker is hurt at each point of an item's way, and afterwards item, money, effects and attempts are as
the table says.

The item's handler does one durable step, writes one checkpoint and asks a model once; effects and model calls are counted
in the ledger that no fault touches. ``redis``: the worker stands still at the point while Redis is killed and comes back.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from zoneinfo import ZoneInfo

import pytest
from arena import LEASE_S, LONG, PATIENCE_S, SEED, Arena
from lab import until
from test_crash_points import _pass_holds

from swarm_infrastructure.blackboard import Blackboard
from swarm_infrastructure.cost_manager import Ledger as MoneyLedger
from swarm_infrastructure.failure_recovery import Checkpoints
from swarm_infrastructure.keys import BoardKeys

pytestmark = pytest.mark.timeout(1800)
ROUNDS = 5 if LONG else 1
NO_CRASH = ("before:claim", "after:end_claims", "after:hand_back")


@dataclass(frozen=True)
class Row:
    """What must be true when a worker was killed at a point, and another one has done the item."""

    point: str
    effects: int = 1  #: how often the durable step's work was done
    asked: int = 1  #: calls that reached the model
    estimated: int = 0  #: calls booked at the estimate, for nobody knows what they cost
    resumed: str = ""  #: the stage that the second worker finds; "-" if there is no second one

    @property
    def crashes(self) -> int:
        return 0 if self.point in NO_CRASH else 1


TABLE = [
    Row("before:claim"),
    Row("after:claim"),
    Row("before:record_step", effects=2),
    Row("after:record_step"),
    Row("before:keep_checkpoint"),
    Row("after:keep_checkpoint", resumed="effect_done"),
    Row("before:reserve", resumed="effect_done"),
    Row("after:reserve", estimated=1, resumed="effect_done"),
    Row("before:model", estimated=1, resumed="effect_done"),
    Row("after:model", asked=2, estimated=1, resumed="effect_done"),
    Row("before:settle", asked=2, estimated=1, resumed="effect_done"),
    Row("after:settle", resumed="effect_done"),
    Row("before:end_claims", resumed="effect_done"),
    Row("after:end_claims", resumed="-"),
]
SHORT = ("after:record_step", "before:keep_checkpoint", "after:reserve", "after:model", "after:settle")


def _rows(*names: str) -> list[Row]:
    return [row for row in TABLE if LONG or row.point in names]


async def one_round(arena: Arena, row: Row, how: str) -> None:
    board = await arena.another_board()
    [item] = await arena.submit({"do": "all"}, board=board)
    signal = "stop" if how == "redis" else how
    victim = await arena.start(1, SWARM_ID=board.namespace, SWARM_CRASH_AT=f"{row.point}:{signal}")
    await until(lambda: [x for x in arena.ledger.lines("crash") if x["pid"] == victim.pid], f"the crash {row.point}")
    if how == "redis":
        arena.server.kill()
        arena.server.restart()
        victim.send_signal(18)  # SIGCONT
    helper = await arena.start(1, SWARM_ID=board.namespace)
    if how == "stop":
        if row.resumed != "-":
            await until(lambda: arena.done([item], board), "the other one's completion")
        await asyncio.sleep(LEASE_S * 3)
        victim.send_signal(18)
    await until(lambda: arena.done([item], board), f"the item done, {row.point} {how}")
    for process in (victim, helper):
        if process.poll() is None:
            process.terminate()
            await asyncio.to_thread(process.wait, PATIENCE_S)
    await check_row(arena, row, how, board, item)


async def check_row(arena: Arena, row: Row, how: str, board: Blackboard, item: str) -> None:
    where = f"{row.point} {how} (seed {SEED})"
    history = (await arena.account([item], board))[item]
    kinds = Counter(event.kind for event in history)
    counts = {what: Counter(x["item"] for x in arena.ledger.lines(what))[item] for what in ("effect", "model")}
    keys = {line["key"] for what in ("effect", "model") for line in arena.ledger.lines(what) if line["item"] == item}
    assert len(keys) == 2, where  # the outside world was given the same keys in every attempt
    await _pass_holds(arena, board.namespace)
    money = MoneyLedger(arena.store, BoardKeys(board.namespace, board.board.name), ZoneInfo("UTC"))
    booked = Counter([entry.kind async for entry in money.entries()])
    settled = [entry async for entry in money.entries() if entry.kind == "settled" and entry.usd]
    stages = [line["stage"] for line in arena.ledger.lines("resumed") if line["item"] == item]
    tokens = {event.token for event in history if event.kind == "claimed"}
    match how:
        case "kill":
            assert kinds["lease_ended"] == row.crashes, where
            assert (counts["effect"], counts["model"], booked["unknown"]) == (row.effects, row.asked, row.estimated), (
                where
            )
            assert stages[-1] == row.resumed if row.resumed != "-" else stages == [""], where
        case "cancel":  # it hands back at once, and what it had sent it books itself
            assert kinds["lease_ended"] == 0, where
            assert counts["effect"] <= row.effects, where
            assert counts["model"] <= row.asked, where
        case "stop":  # what it does when it wakes is refused; a call that it was about to make may still leave
            assert kinds["completed"] == 1, where
            assert counts["effect"] <= 2, where
            assert counts["model"] <= row.asked + 1, where
        case "redis":  # as of the last call that was answered: it goes on, unless its lease ran out meanwhile
            assert kinds["lease_ended"] <= 1, where
            assert counts["effect"] <= 2, where
            assert counts["model"] <= 2, where
    assert len(settled) >= 1, where  # somebody's answer was paid for and kept
    recorded = [step.name for step in await board_steps(arena, board, item)]
    assert sorted(recorded) == ["content_analysis", "effect"], where
    for found in await Checkpoints(board).list(item):
        assert found.token in {int(token) for token in tokens}, where
        assert found.data["filling"] == "x" * 20_000, where
    await arena.check(board)


async def board_steps(arena: Arena, board: Blackboard, item: str) -> object:
    from swarm_infrastructure.failure_recovery import Steps

    return await Steps(arena.store, board.keys).list(item)


@pytest.mark.parametrize("row", _rows(*SHORT), ids=lambda row: row.point)
async def test_a_killed_worker_leaves_what_the_table_says(arena: Arena, row: Row) -> None:
    for _ in range(ROUNDS):
        await one_round(arena, row, "kill")
    arena.report(f"crash table, kill -9 {row.point}", fault="3.2b", n=ROUNDS, lost=0, accepted_twice=0, deviations=0)


@pytest.mark.parametrize("row", _rows("after:record_step", "after:model"), ids=lambda row: row.point)
@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_so_does_one_that_was_frozen_or_cancelled(arena: Arena, row: Row, how: str) -> None:
    for _ in range(ROUNDS):
        await one_round(arena, row, how)
    arena.report(f"crash table, {how} {row.point}", fault="3.2b", n=ROUNDS, lost=0, accepted_twice=0, deviations=0)


@pytest.mark.parametrize("row", _rows("after:settle"), ids=lambda row: row.point)
async def test_and_so_it_is_when_redis_is_killed_in_between(arena: Arena, row: Row) -> None:
    for _ in range(ROUNDS):
        await one_round(arena, row, "redis")
    arena.report(
        f"crash table, Redis killed {row.point}", fault="3.2b", n=ROUNDS, lost=0, accepted_twice=0, deviations=0
    )
