"""The whole audit: each invariant beside the fold has an oracle that finds a forged breach, and that keeps quiet about work."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from given import Connect

from swarm_infrastructure.blackboard import Blackboard, Board, Claimed, Section, Submission
from swarm_infrastructure.blackboard.locks import Locks
from swarm_infrastructure.blackboard.retention import LogBound, Retention
from swarm_infrastructure.consensus import Debates
from swarm_infrastructure.cost_manager import Ledger, Spender
from swarm_infrastructure.cost_manager.budgets import zone
from swarm_infrastructure.failure_recovery.checkpoints import Checkpoints
from swarm_infrastructure.keys import BusKeys
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import RedisServer
from swarm_infrastructure.watchdog.audit import INVARIANTS, WholeAudit, audit_whole

BOARD = Board(
    name="mill",
    sections={
        "grain": Section(ready={"new": "milling"}, resting=("flour",), then={"milling": "grain/flour"}, cap=8),
        "store": Section(resting=("sold",)),
    },
    steps={"milling": frozenset({"flour"}), "flour": frozenset({"sold"})},
    final=frozenset({"sold"}),
)
NEW, MILLING = "grain/new/", "grain/milling/"
RECORD = (
    "event", "created_ms", "priority", "seq", "request", "dedup", "section", "status", "requires", "version", "attempts",
    "crashes", "token", "holder", "origin", "endings",
)  # fmt: skip
namespaces = (f"whole{n}" for n in itertools.count())


@dataclass
class Mill:
    """A board on which much has happened and nothing is wrong, and the means to forge what Redis holds of it."""

    store: Store
    board: Blackboard
    held: Claimed
    ledger: Ledger

    async def audit(self, **options: Any) -> WholeAudit:
        options = {"settle_s": 0.0, "zone": zone("UTC")} | options
        return await audit_whole(self.store, self.board.namespace, BOARD.name, **options)

    async def raw(self, *parts: Any) -> Any:
        return await self.store.command(*parts)

    async def forge(self, item_id: str, **fields: Any) -> None:
        record = (await self.raw("HGET", self.board.keys.items, item_id)).decode().split("|")
        for name, value in fields.items():
            record[RECORD.index(name)] = str(value)
        await self.raw("HSET", self.board.keys.items, item_id, "|".join(record))

    async def forge_event(
        self, kind: str, item: str, before: str, after: str, *, token: Any = "", agent: str = "", request: str = ""
    ) -> None:
        """One more event of an item, which its record then names."""
        now = await self.board.get(item)
        event = await self.raw(
            "XADD", self.board.keys.events, "*", "kind", kind, "from", before, "to", after, "agent", agent, "token", token,
            "reason", "", "trace", "", "request", request, "items", f"{item} {now.version + 1} {now.event}",
        )  # fmt: skip
        await self.forge(item, version=now.version + 1, event=event.decode())

    async def clock(self, s: float) -> None:
        await self.raw("HINCRBY", self.board.keys.rules, "clock_offset_ms", round(s * 1000))


@pytest.fixture
async def mill(redis_server: RedisServer, connect: Connect) -> AsyncIterator[Mill]:
    store = await connect(redis_server.url)
    async with Blackboard(store, BOARD, namespace=next(namespaces)) as board:
        ledger = Ledger(store, board.keys, zone("UTC"))
        await board.register_agent("ann", "miller", lanes=[NEW], slots=4, pid=1)
        await board.submit(*(Submission(id=name, section="grain", payload={}) for name in ("flour", "back", "held")))
        [flour, back, held] = await board.claim("grain", "ann", most=3)
        await board.complete(flour.claim, result={"kg": 2})
        await board.hand_back(back.claim)
        [again] = await board.claim("grain", "ann")
        await board.hand_back(again.claim)
        await board.submit(Submission(id="new", section="grain", payload={}))
        paid = await ledger.reserve(Spender(agent_id="ann"), 500, 10, sent=True)
        await ledger.settle(paid, 400, 8)
        await Checkpoints(board).create("held", "sieved", {"kg": 1}, claim=held.claim)
        await Checkpoints(board).create("a task that is no item".replace(" ", "_"), "begun", {})
        yield Mill(store, board, held, ledger)


Forgery = Callable[[Mill], Awaitable[Any]]
forgeries: list[Any] = []


def forgery(invariant: str, words: str, **options: Any) -> Callable[[Forgery], Forgery]:
    """Register a way to forge the board, what the audit has to call it, and what it says."""

    def register(forge: Forgery) -> Forgery:
        forgeries.append(pytest.param(forge, invariant, words, options, id=f"{invariant}-{forge.__name__}"))
        return forge

    return register


# -- I4 ----------------------------------------------------------------------------------------------------------------


@forgery("I4", "was over for 15 s when a worker was last heard of")
async def a_lease_that_nobody_takes_back(mill: Mill) -> None:
    await mill.clock(45)
    await mill.board.heartbeat("ann")


# -- I5 ----------------------------------------------------------------------------------------------------------------


@forgery("I5", "claimed it")
async def a_claim_under_another_ones_hands(mill: Mill) -> None:
    await mill.forge_event("claimed", "held", MILLING, MILLING, token=mill.held.claim.token + 1, agent="bob")


@forgery("I5", "taken back 20 ms before it ended")
async def a_lease_taken_back_too_early(mill: Mill) -> None:
    row = {"at_ms": 1, "late_ms": -20, "kind": "lease_ended", "agent": "ann", "token": "5", "error": "gone"}
    await mill.raw("HSET", mill.board.keys.errors, "new", orjson.dumps(row))


# -- I9 ----------------------------------------------------------------------------------------------------------------


@forgery("I9", "changed it again")
async def a_request_that_changed_an_item_twice(mill: Mill) -> None:
    for _ in range(2):
        await mill.forge_event("updated", "new", NEW, NEW, request="once")


@forgery("I9", "receipt of 'ann' is torn")
async def a_torn_receipt(mill: Mill) -> None:
    await mill.raw("HSET", mill.board.keys.receipts, "ann", "request")


@forgery("I9", "the newest is")
async def a_receipt_from_the_future(mill: Mill) -> None:
    await mill.raw("HSET", mill.board.keys.receipts, "ann", f"request {10**18} 1:held")


@forgery("I9", "and 'ann' holds it")
async def a_receipt_for_what_another_agent_got(mill: Mill) -> None:
    await mill.raw("HDEL", mill.board.keys.receipts, "ann")
    await mill.raw("HSET", mill.board.keys.receipts, "bob", f"request {mill.held.claim.token} 1:held")


@forgery("I9", "gave it to")
async def two_receipts_for_one_item(mill: Mill) -> None:
    for agent in ("ann", "bob"):
        await mill.raw("HSET", mill.board.keys.receipts, agent, f"request {mill.held.claim.token} 1:held")


@forgery("I9", "settled again")
async def a_call_booked_twice(mill: Mill) -> None:
    [[_, fields]] = await mill.raw("XREVRANGE", mill.board.keys.ledger, "+", "-", "COUNT", 1)
    row = {**fields, b"usd": b"0", b"tokens": b"0", b"requests": b"0"}
    await mill.raw("XADD", mill.board.keys.ledger, "*", *itertools.chain.from_iterable(row.items()))


# -- I13 ---------------------------------------------------------------------------------------------------------------


@forgery("I13", "2 attempts count instead of 0")
async def hand_backs_that_count_as_attempts(mill: Mill) -> None:
    await mill.forge("back", attempts=2)


@forgery("I13", "1 crashes count instead of 0")
async def a_hand_back_that_counts_as_a_crash(mill: Mill) -> None:
    await mill.forge("back", crashes=1)


# -- I14 ---------------------------------------------------------------------------------------------------------------


@forgery("I14", "bytes that don't fit their checksum")
async def a_torn_checkpoint(mill: Mill) -> None:
    key = mill.board.keys.checkpoints_of("held")
    text = await mill.raw("HGET", key, "sieved")
    await mill.raw("HSET", key, "sieved", text[:-3])


@forgery("I14", "the item's newest is")
async def a_checkpoint_of_a_claim_that_never_was(mill: Mill) -> None:
    key = mill.board.keys.checkpoints_of("held")
    text = await mill.raw("HGET", key, "sieved")
    token = str(mill.held.claim.token).encode()
    assert token in text
    await mill.raw("HSET", key, "sieved", text.replace(token, b"9" * len(token), 1))


# -- I15 ---------------------------------------------------------------------------------------------------------------


@forgery("I15", "its cap is 8")
async def items_submitted_past_the_cap(mill: Mill) -> None:
    for n in range(9):
        await mill.raw(
            "XADD", mill.board.keys.events, "*", "kind", "submitted", "from", "", "to", NEW, "agent", "", "token", "",
            "reason", "", "trace", "", "request", f"r{n}", "items", f"more-{n} 1 ",
        )  # fmt: skip
    await mill.raw("SET", mill.board.keys.seq, 100)


# -- I17 ---------------------------------------------------------------------------------------------------------------


@forgery("I17", "2 tokens")
async def a_bell_that_wakes_two(mill: Mill) -> None:
    bell = mill.board.keys.lane(NEW).bell
    await mill.raw("DEL", bell)
    await mill.raw("LPUSH", bell, "1", "1")


@forgery("I17", "nothing is claimed from there")
async def a_bell_where_nobody_claims(mill: Mill) -> None:
    await mill.raw("LPUSH", mill.board.keys.lane("grain/flour/").bell, "1")


# -- I18 ---------------------------------------------------------------------------------------------------------------


@forgery("I18", "the log says otherwise")
async def an_ending_that_the_log_does_not_know(mill: Mill) -> None:
    await mill.forge("flour", endings=f"{mill.held.claim.token}:completed:7")


@forgery("I18", "it has a result but no record")
async def a_result_without_an_item(mill: Mill) -> None:
    await mill.raw("HSET", mill.board.keys.results, "ghost", "{}")


@forgery("I18", "3 items are counted as submitted, the log has 4")
async def a_counter_of_arrivals_turned_back(mill: Mill) -> None:
    await mill.raw("SET", mill.board.keys.seq, 3)


# -- I20 ---------------------------------------------------------------------------------------------------------------


async def at_rest(mill: Mill) -> None:
    await mill.board.complete(mill.held.claim)


@forgery("I20", "'ann' holds 1 claim", at_rest=True)
async def a_claim_left(mill: Mill) -> None:
    pass


@forgery("I20", "money is held for a call", at_rest=True)
async def a_reservation_left(mill: Mill) -> None:
    await at_rest(mill)
    await mill.ledger.reserve(Spender(agent_id="ann"), 500, 10)


@forgery("I20", "'ann' holds 1 lock", at_rest=True)
async def a_lock_left(mill: Mill) -> None:
    await at_rest(mill)
    locks: Locks = await mill.board._lock_table()
    await locks.take("door", "ann", lease_s=60)


@forgery("I20", "'ann' waits for the lock 'door'", at_rest=True)
async def a_wait_left(mill: Mill) -> None:
    await at_rest(mill)
    row = {"agent": "ann", "kind": "lock", "name": "door", "since_ms": 1, "ends_ms": 10**15, "holding": [], "item": ""}
    await mill.raw("HSET", mill.board.keys.waits, "w", orjson.dumps(row))


@forgery("I20", "1 calls of service 'sums'", at_rest=True)
async def a_call_that_nobody_took(mill: Mill) -> None:
    await at_rest(mill)
    await mill.raw("RPUSH", BusKeys(mill.board.namespace).requests("sums"), "{}")


@forgery("I20", "1001 receipts", at_rest=True)
async def receipts_of_a_thousand_strangers(mill: Mill) -> None:
    await at_rest(mill)
    for n in range(1001):
        await mill.raw("HSET", mill.board.keys.receipts, f"stranger-{n}", "request 1 1:gone")


@pytest.mark.parametrize(("forge", "invariant", "words", "options"), forgeries)
async def test_what_was_forged_is_found_and_named(
    mill: Mill, forge: Forgery, invariant: str, words: str, options: dict[str, Any]
) -> None:
    before = await mill.audit()
    assert before.clean, before.breaches

    await forge(mill)

    report = await mill.audit(**options)
    found = [breach.what for breach in report.breaches if breach.invariant == invariant]
    assert any(words in what for what in found), report.breaches
    [verdict] = [each for each in report.verdicts() if each.invariant.name == invariant]
    assert (verdict.state, verdict.breaches) == ("broken", len(found))


async def test_each_invariant_has_one_line_and_says_what_redis_alone_cannot_tell(mill: Mill) -> None:
    report = await mill.audit()

    states = {each.invariant.name: each.state for each in report.verdicts()}
    assert list(states) == [f"I{n}" for n in range(1, 21)] + ["D"]
    assert {name for name, state in states.items() if state != "holds"} == {"I16", "I19", "I20"}
    assert report.skipped["I20"] == "holds at rest only: --at-rest"
    told = report.as_dict()
    assert told["clean"] is True
    assert [row["invariant"] for row in told["invariants"]] == [each.name for each in INVARIANTS]
    assert all(row["note"] for row in told["invariants"] if row["state"] == "not judged")


async def test_a_board_at_rest_is_clean(mill: Mill) -> None:
    await at_rest(mill)
    await mill.raw("HSET", mill.board.keys.receipts, "stranger", "request 1 1:gone")

    report = await mill.audit(at_rest=True)

    assert report.clean, report.breaches
    assert report.notes["I20"] == "1 receipts are of agents that are not registered"


async def test_a_lease_over_without_a_living_worker_is_not_judged_and_taken_back_late_it_is_noted(mill: Mill) -> None:
    await mill.clock(100)

    report = await mill.audit()
    assert report.clean, report.breaches
    assert report.skipped["I4"] == "leases or delays are over (1), and no worker was heard of since"

    await mill.board.claims.reap([NEW])
    report = await mill.audit()
    assert report.clean, report.breaches
    assert report.notes["I4"].startswith(
        "1 of 1 leases were taken back later than 1 s after their end, the latest after 7"
    )


async def test_a_lease_that_is_taken_back_while_the_audit_looks_is_no_breach(mill: Mill) -> None:
    await mill.clock(45)
    await mill.board.heartbeat("ann")

    auditing = asyncio.create_task(mill.audit(settle_s=0.5))
    await mill.board.claims.reap([NEW])

    assert (await auditing).clean


async def test_an_agent_by_hand_need_not_look_after_leases(mill: Mill) -> None:
    await mill.board.register_agent("ann", "miller")
    await mill.clock(45)
    await mill.board.heartbeat("ann")

    assert (await mill.audit()).clean


async def test_workers_that_were_killed_before_the_lease_ended_are_not_blamed(mill: Mill) -> None:
    await mill.clock(25)
    await mill.board.heartbeat("ann")
    await mill.clock(16)  # the lease ended 11 s ago, and nobody was heard of since

    report = await mill.audit()

    assert report.clean, report.breaches
    assert "I4" in report.skipped


async def test_completions_may_fill_a_section_past_its_cap_and_a_short_log_is_not_judged(
    redis_server: RedisServer, connect: Connect
) -> None:
    rules = Board(
        name="mill",
        sections={
            "in": Section(ready={"new": "at"}, then={"at": "out/kept"}, cap=3),
            "out": Section(resting=("kept",), cap=1),
        },
        steps={"at": frozenset({"kept"})},
        final=frozenset({"kept"}),
    )
    store = await connect(redis_server.url)
    async with Blackboard(store, rules, namespace=next(namespaces)) as board:
        await board.submit(*(Submission(id=name, section="in", payload={}) for name in "abc"))
        for each in await board.claim("in", "ann", most=3):
            await board.complete(each.claim)

        report = await audit_whole(store, board.namespace, "mill", zone=zone("UTC"))
        assert report.clean, report.breaches

        [first, *_] = await store.command("XRANGE", board.keys.events, "-", "+", "COUNT", 1)
        await store.command("XDEL", board.keys.events, first[0])
        report = await audit_whole(store, board.namespace, "mill", zone=zone("UTC"))
        assert report.skipped["I15"] == "the log does not go back to the first item"


async def test_the_whole_audit_never_cries_wolf_over_a_board_at_work(
    redis_server: RedisServer, connect: Connect
) -> None:
    """Claims, endings, renewals, debates, money and checkpoints, while the audit begins again as soon as it is done."""
    store, done = await connect(redis_server.url), asyncio.Event()
    async with Blackboard(store, BOARD, namespace=next(namespaces)) as board:
        ledger, kept, debates = Ledger(store, board.keys, zone("UTC")), Checkpoints(board), Debates(store, board.keys)
        await board.register_agent("ann", "miller", lanes=[NEW], pid=1)

        async def produce() -> None:
            for n in itertools.count():
                if done.is_set():
                    return
                section = (await board.get_section_stats("grain"))["total"]
                if section < 6:
                    await board.submit(Submission(id=f"i{n}", section="grain", payload={}))
                await asyncio.sleep(0.001)

        async def work(agent: str) -> None:
            for n in itertools.count():
                if done.is_set():
                    return
                for each in await board.claim("grain", agent, most=2):
                    paid = await ledger.reserve(Spender(agent_id=agent), 500, 10, sent=True)
                    await kept.create(each.item.id, "begun", {"n": n}, claim=each.claim)
                    if n % 3 == 0:
                        await board.hand_back(each.claim)
                    else:
                        await board.complete(each.claim, result=n)
                        await board.move(each.item.id, "grain", "store")
                    await ledger.settle(paid, 400, 8)
                if n % 10 == 0:
                    await debates.open(f"{agent}-{n}", "go on?", voters=[agent], deadline_s=5)
                    await debates.vote(f"{agent}-{n}", agent, "publish")
                await asyncio.sleep(0.001)

        async def audits() -> list[WholeAudit]:
            reports = [await audit_whole(store, board.namespace, "mill", zone=zone("UTC")) for _ in range(5)]
            done.set()
            return reports

        reports, *_ = await asyncio.gather(audits(), produce(), work("ann"), work("bob"))

    assert [report.breaches for report in reports if not report.clean] == []
    assert reports[-1].events > 100


@pytest.mark.parametrize(("forge", "invariant", "words", "options"), forgeries)
async def test_what_is_forged_behind_a_trimmed_log_is_found_too(
    mill: Mill, forge: Forgery, invariant: str, words: str, options: dict[str, Any]
) -> None:
    bound = LogBound(entries=1, at_least_s=0)
    assert await Retention(mill.store, mill.board.keys, BOARD, bound).trim_events() > 5
    before = await mill.audit()
    assert before.clean, before.breaches

    await forge(mill)

    report = await mill.audit(**options)
    if invariant == "I15":
        assert "does not go back" in report.skipped["I15"]
    assert report.breaches
