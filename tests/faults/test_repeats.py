"""Calls that come several times, and callers that go away in the middle of one (F17, F18)."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Generator, Sequence
from contextlib import AsyncExitStack, suppress
from random import Random
from typing import Any, NoReturn
from zoneinfo import ZoneInfo

import pytest
from arena import LONG, SEED, Arena
from lab import HERE, until

from swarm_infrastructure import Blackboard, Submission
from swarm_infrastructure.blackboard.claims import Claimed, ClaimRequest
from swarm_infrastructure.cost_manager import Ledger as MoneyLedger
from swarm_infrastructure.cost_manager import Spender
from swarm_infrastructure.errors import ClaimLostError
from swarm_infrastructure.store import Store

pytestmark = pytest.mark.timeout(1800)
PROCESSES, ROUNDS = 5, 200 if LONG else 20
CANCELLED = 0.10  # of all awaits


# -- one call, several times ---------------------------------------------------------------------------------------------


class NotSent(BaseException):
    """Carries a call instead of sending it."""

    def __init__(self, function: str, keys: Sequence[str], args: Sequence[Any]) -> None:
        self.call = (function, list(keys), list(args))


class Unsent(Store):
    """A store that sends nothing."""

    async def call(self, function: str, keys: Sequence[str], args: Sequence[Any] = (), **_: Any) -> NoReturn:
        raise NotSent(function, keys, args)


async def the_call(asking: Coroutine[Any, Any, Any]) -> tuple[str, list[str], list[Any]]:
    """What *asking* would send."""
    with pytest.raises(NotSent) as caught:
        await asking
    return caught.value.call


class Repeaters:
    """Processes that send the same call at the same moment."""

    def __init__(self, arena: Arena, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._arena, self._processes, self._number = arena, processes, 0

    async def send(self, call: tuple[str, list[str], list[Any]], processes: int) -> list[Any]:
        """Send it from so many processes, from some of them twice; every answer."""
        self._number += 1
        redis, at, awaited = self._arena.ledger.redis, time.time() + 0.02, 0
        for process in self._arena.random.sample(self._processes, processes):
            times = self._arena.random.choice((1, 1, 2))
            awaited += times
            redis.rpush(f"jobs:{process.pid}", pickle.dumps((self._number, at, *call, times)))
        name = f"answers:{self._number}"
        await until(lambda: redis.llen(name) == awaited, f"{awaited} answers", every_s=0.002)
        return [pickle.loads(each) for each in redis.lrange(name, 0, -1)]


async def test_what_is_delivered_two_to_five_times_at_once_by_several_processes_counts_once(arena: Arena) -> None:
    command = [sys.executable, str(HERE / "repeaters.py"), "--ledger", str(arena.ledger.path)]
    environment = arena.environment | {"PYTHONPATH": str(HERE)}
    started = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(PROCESSES)]
    arena.processes += started
    await until(lambda: len(arena.ledger.lines("up")) == PROCESSES, "the repeaters")
    repeaters, every, delivered = Repeaters(arena, started), list[str](), 0
    unsent = Blackboard(Unsent(arena.server.url), arena.board.board, namespace=arena.namespace)
    lanes = arena.board.claims.lanes("jobs")
    for n in range(ROUNDS):
        item, processes = f"r{n}", arena.random.randint(2, PROCESSES)
        every.append(item)
        submitting = unsent.submit(Submission(id=item, section="jobs", payload={"n": n}, content_hash=f"h{n}"))
        submitted = await repeaters.send(await the_call(submitting), processes)
        request = ClaimRequest(agent_id=f"a{n}", role="hand", lanes=lanes, most=1, lease_s=600)
        claimed = await repeaters.send(await the_call(unsent.claims._claim([request])), processes)
        rivals = [ClaimRequest(agent_id=f"b{k}", role="hand", lanes=lanes, lease_s=600) for k in range(2)]
        asking = [await the_call(unsent.claims._claim_item(item, rival)) for rival in rivals]
        rivalled = [answer for rival in asking for answer in await repeaters.send(rival, 2)]
        assert all(hand[5] == claimed[0][5] and hand[1] == claimed[0][1] for hand in claimed), claimed
        assert all(answer[0] == b"held" for answer in rivalled), rivalled
        [hand] = await arena.board.claims.claim(
            ClaimRequest(agent_id="other", role="hand", lanes=lanes, most=1, lease_s=600)
        )
        assert hand == [], f"claimed twice (seed {SEED})"
        claim = _claim_of(unsent, claimed[0], request, lanes)
        ended = await repeaters.send(await the_call(_sent(unsent, claim)), processes)
        assert len({str(answer) for answer in ended}) == 1, ended  # each repetition gets the first answer
        assert [event.kind for event in await arena.board.history(item)] == ["submitted", "claimed", "completed"]
        assert (await arena.board.get(item)).version == 3
        delivered += len(submitted) + len(claimed) + len(ended)
    for process in started:
        arena.ledger.redis.rpush(f"jobs:{process.pid}", pickle.dumps(None))
    await arena.account(every)
    arena.report(
        "the same call from 2 to 5 processes at once", fault="F18", n=3 * ROUNDS, deliveries=delivered, lost=0,
        accepted_twice=0, rounds=ROUNDS,
    )  # fmt: skip


def _claim_of(board: Blackboard, answer: list[Any], request: ClaimRequest, lanes: tuple[str, ...]) -> Claimed:
    _, token, ends_ms, _, _, hand = answer
    claimed = board.claims._claimed(hand[0], hand[1], hand[2], request.agent_id, token, ends_ms, 600, time.monotonic())
    assert claimed is not None
    return claimed


async def _sent(board: Blackboard, claimed: Claimed) -> None:
    """What completing it sends; endings travel in batches, which gather until the loop has turned once."""
    sent: list[tuple[str, list[str], list[Any]]] = []

    async def keep(function: str, keys: Sequence[str], args: Sequence[Any] = (), **_: Any) -> NoReturn:
        sent.append((function, list(keys), list(args)))
        raise ClaimLostError(claimed.item.id, claimed.claim.agent_id, claimed.claim.token, "not sent")

    board.store.call = keep  # type: ignore[method-assign]
    try:
        with suppress(ClaimLostError):
            await board.complete(claimed.claim, result={"ok": True})
    finally:
        del board.store.call
    [call] = sent
    raise NotSent(*call)


# -- callers that go away ------------------------------------------------------------------------------------------------


class Fickle:
    """Awaits what it is given, and cancels the task in a tenth of all the awaits on the way."""

    def __init__(self, work: Coroutine[Any, Any, Any], random: Random, counts: Counter[str]) -> None:
        self._work, self._random, self._counts = work, random, counts

    def __await__(self) -> Generator[Any, Any, Any]:
        answer: Any = None
        error: BaseException | None = None
        while True:
            try:
                waited_for = self._work.send(answer) if error is None else self._work.throw(error)
            except StopIteration as end:
                return end.value
            self._counts["awaits"] += 1
            if self._random.random() < CANCELLED:
                self._counts["cancelled"] += 1
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            answer, error = None, None
            try:
                answer = yield waited_for
            except BaseException as raised:
                error = raised


async def test_callers_cancelled_at_any_await_leave_no_wrong_answer_claim_hold_or_connection(arena: Arena) -> None:
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    every: list[str] = []
    ends_at = time.monotonic() + (60 if LONG else 5)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(Store(arena.server.url))
        board = await stack.enter_async_context(Blackboard(store, arena.board.board, namespace=arena.namespace))
        money = MoneyLedger(store, board.keys, ZoneInfo("UTC"))
        lanes = board.claims.lanes("jobs")

        async def cycle(caller: int, n: int) -> None:
            item = f"c{caller}_{n}"
            every.append(item)
            await board.submit(Submission(id=item, section="jobs", payload={"id": item}))
            held = await money.reserve(Spender(f"a{caller}", "hand"), 1000, 10, id=item)
            try:
                echo = await store.command("ECHO", item)
                if echo != item.encode():
                    wrong.append(f"{item}: {echo!r}")
                found = await board.get(item)
                if found.id != item or found.payload != {"id": item}:
                    wrong.append(f"{item}: {found}")
            except asyncio.CancelledError:
                await asyncio.shield(money.release(held))
                raise
            await money.settle(held, 900, 9)
            request = ClaimRequest(agent_id=f"a{caller}", role="hand", lanes=lanes, most=1, lease_s=600)
            [hand] = await board.claims.claim(request)
            for claimed in hand:
                if claimed.item.payload != {"id": claimed.item.id} or claimed.claim.agent_id != f"a{caller}":
                    wrong.append(f"{claimed}")
                await asyncio.shield(board.complete(claimed.claim, result=claimed.item.id))

        async def call(caller: int) -> None:
            random, n = Random(f"{SEED}:{caller}"), 0

            async def fickle(n: int) -> None:
                await Fickle(cycle(caller, n), random, counts)

            while time.monotonic() < ends_at:
                n += 1
                task = asyncio.create_task(fickle(n))
                await asyncio.wait({task})
                if not task.cancelled():
                    task.result()
                    counts["whole"] += 1

        await asyncio.gather(*(call(caller) for caller in range(16)))
        await asyncio.sleep(0.5)  # what was on its way when its caller left arrives
        held = [item.id for item in await board.queries.by_status("jobs", "active", limit=1000)]
        clients = await store.command("CLIENT", "LIST")
        [node] = await store._topology.nodes()
        busy = node.busy
        assert not wrong, f"{wrong[:5]} (seed {SEED})"
        assert not held, f"claims that nobody has any more: {held} (seed {SEED})"
        assert busy == 0, f"connections that nobody gives back: {busy} (seed {SEED})"
        await store.command("HINCRBY", board.keys.rules, "clock_offset_ms", 60_000)
        while any(await money.expire()):
            pass
        assert not {scope for scope, row in (await money.counters()).items() if row[1]}, f"held money (seed {SEED})"
        assert len(clients if isinstance(clients, list) else clients.splitlines()) < 60
    assert counts["cancelled"] > 100
    assert counts["whole"] > 10
    await arena.check()
    arena.report(
        "a tenth of all awaits cancelled", fault="F17", n=len(every), awaits=counts["awaits"], cancelled=counts["cancelled"],
        whole=counts["whole"], wrong_answers=0, leaked_claims=0, leaked_holds=0, leaked_connections=0,
    )  # fmt: skip
