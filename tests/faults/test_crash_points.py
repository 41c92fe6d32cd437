"""A worker is hurt at each point of an item's way through it: killed, frozen, told to stop, cancelled (F1).

Each round has a board of its own: one item, a worker that is hurt, and another that starts when that has happened.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from dataclasses import dataclass
from zoneinfo import ZoneInfo

import pytest
from arena import LEASE_S, LONG, PATIENCE_S, SEED, SLACK_S, Arena, spread
from lab import until

from swarm_infrastructure.cost_manager import Ledger as MoneyLedger
from swarm_infrastructure.cost_manager.ledger import SENT_S
from swarm_infrastructure.keys import BoardKeys

pytestmark = pytest.mark.timeout(1800)
AT_ONCE = 5
KILLS = 50 if LONG else 2
OTHERS = 5 if LONG else 1


@dataclass(frozen=True)
class Phase:
    """A point, and what must be true when a worker died there."""

    point: str
    crashes: int  #: of the item
    asked: int = 0  #: calls to the model, whoever made them
    by_the_dead: bool = False  #: the item is done all the same

    @property
    def payload(self) -> dict[str, object]:
        if "hand_back" in self.point:
            return {"do": "sleep", "s": 60, "once_crashed_s": 0}
        if self.asked:
            return {"do": "ask"}
        return {"do": "sleep", "s": 0.8 if "renew" in self.point else 0.05}


PHASES = [
    Phase("before:claim", 0),
    Phase("after:claim", 1),
    Phase("before:reserve", 1, asked=1),
    Phase("after:reserve", 1, asked=1),
    Phase("before:model", 1, asked=1),
    Phase("after:model", 1, asked=2),
    Phase("before:settle", 1, asked=2),  # the answer was not kept: it is paid for again
    Phase("after:settle", 1, asked=1),
    Phase("before:renew", 1),
    Phase("after:renew", 1),
    Phase("before:end_claims", 1),
    Phase("after:end_claims", 0, by_the_dead=True),
    Phase("before:hand_back", 1),
    Phase("after:hand_back", 0),
]
SHORT = ("after:claim", "before:settle", "before:end_claims", "after:end_claims")


async def one_round(arena: Arena, phase: Phase, how: str) -> float | None:
    """Hurt one worker; what it held is done once, by whomever. Seconds until another one began it."""
    board = await arena.another_board()
    payload = dict(phase.payload)
    [item] = await arena.submit(payload, board=board)
    handing_back = "hand_back" in phase.point
    environment = {"SWARM_ID": board.namespace, "SWARM_SHUTDOWN_GRACE_S": "0.3" if handing_back else "2"}
    victim = await arena.start(1, **environment, SWARM_CRASH_AT=f"{phase.point}:{how}")
    if handing_back:
        await until(lambda: arena.started([item]), "the start")
        victim.terminate()
    await until(lambda: [x for x in arena.ledger.lines("crash") if x["pid"] == victim.pid], f"the crash {phase.point}")
    if handing_back and how in ("term", "cancel"):  # it goes on, and may hand the item back yet
        await asyncio.to_thread(victim.wait, PATIENCE_S)
    if handing_back and not (await board.get(item)).holder:  # nobody crashed: tell the next one to end it all the same
        await board.update("jobs", item, {"s": 0})
    helper = await arena.start(1, SWARM_ID=board.namespace)
    if how == "stop":
        await until(lambda: arena.done([item], board) if not phase.by_the_dead else True, "the other one's completion")
        await asyncio.sleep(LEASE_S * 3)
        victim.send_signal(signal.SIGCONT)
    await until(lambda: arena.done([item], board), f"the item done, {phase.point} {how}")
    if how in ("term", "cancel"):
        await asyncio.to_thread(victim.wait, PATIENCE_S)
    for process in (victim, helper):
        if process.poll() is None:
            process.terminate()
            await asyncio.to_thread(process.wait, PATIENCE_S)
    history = (await arena.account([item], board))[item]
    kinds, where = Counter(event.kind for event in history), f"{phase.point} {how} (seed {SEED})"
    asked = Counter(line["item"] for line in arena.ledger.lines("model"))[item]
    if how == "kill":
        assert (kinds["lease_ended"], asked) == (phase.crashes, phase.asked), where
        assert (kinds["claimed"] == 1) == (phase.by_the_dead or phase.point == "before:claim"), where
    assert asked <= 2, where
    if phase.asked:
        await _pass_holds(arena, board.namespace)
        await arena.check(board)
    return _recovery(arena, item, victim.pid)


def _recovery(arena: Arena, item: str, victim: int) -> float | None:
    hurt_at = next(line["at"] for line in arena.ledger.lines("crash") if line["pid"] == victim)
    again = [line["at"] for line in arena.ledger.lines("start") if line["item"] == item and line["pid"] != victim]
    return again[0] - hurt_at if again else None


async def _pass_holds(arena: Arena, namespace: str) -> None:
    """Let the board's clock go on until every dead caller is given up: then nothing is held."""
    keys = BoardKeys(namespace, "faults")
    money = MoneyLedger(arena.store, keys, ZoneInfo("UTC"))
    await arena.store.command("HINCRBY", keys.rules, "clock_offset_ms", round((SENT_S + 1) * 1000))
    while any(await money.expire()):
        pass
    assert not {scope: row for scope, row in (await money.counters()).items() if row[1]}, f"held (seed {SEED})"


async def _rounds(arena: Arena, phase: Phase, how: str, rounds: int) -> list[float]:
    recoveries: list[float] = []
    for start in range(0, rounds, AT_ONCE):
        many = (one_round(arena, phase, how) for _ in range(start, min(rounds, start + AT_ONCE)))
        recoveries += [each for each in await asyncio.gather(*many) if each is not None]
    return recoveries


def _phases(*short: str) -> list[Phase]:
    return [phase for phase in PHASES if LONG or phase.point in short]


@pytest.mark.parametrize("phase", _phases(*SHORT, "after:model", "before:hand_back"), ids=lambda phase: phase.point)
async def test_what_a_killed_worker_held_is_done_once_and_offered_within_lease_and_a_second(
    arena: Arena, phase: Phase
) -> None:
    recoveries = await _rounds(arena, phase, "kill", KILLS)
    assert not recoveries or max(recoveries) <= LEASE_S + SLACK_S, f"{recoveries} (seed {SEED})"
    twice = sum(n > 1 for n in Counter(line["item"] for line in arena.ledger.lines("start")).values())
    arena.report(
        f"kill -9 {phase.point}", fault="F1", rounds=KILLS, n=KILLS, lost=0, accepted_twice=0, run_twice=twice,
        **spread(recoveries),
    )  # fmt: skip


@pytest.mark.parametrize("phase", _phases("before:end_claims"), ids=lambda phase: phase.point)
@pytest.mark.parametrize("how", ["stop", "term", "cancel"])
async def test_what_a_frozen_stopped_or_cancelled_worker_held_is_done_once(
    arena: Arena, phase: Phase, how: str
) -> None:
    recoveries = await _rounds(arena, phase, how, OTHERS)
    refused = len(arena.ledger.lines("refused"))
    arena.report(
        f"{how} {phase.point}", fault="F1", rounds=OTHERS, n=OTHERS, lost=0, accepted_twice=0, refused=refused,
        **spread(recoveries),
    )  # fmt: skip
