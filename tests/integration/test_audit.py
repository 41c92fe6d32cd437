"""The audit finds what must not be, names it, and keeps quiet about a board that is only busy."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from swarm_infrastructure.blackboard import Blackboard, Board, Claimed, Section, Submission
from swarm_infrastructure.blackboard.audit import AuditReport, audit
from swarm_infrastructure.errors import ClaimLostError, ConfigurationError
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import RedisServer

BOARD = Board(
    name="shop",
    sections={
        "orders": Section(
            ready={"new": "packing", "again": "packing"},
            resting=("returned",),
            retry="again",
            then={"packing": "sent/done"},
            max_attempts=3,
            max_crashes=2,
        ),
        "sent": Section(resting=("done",)),
    },
    steps={"packing": frozenset({"done", "returned"}), "returned": frozenset({"new"})},
    final=frozenset({"done"}),
)
NEW, AGAIN, PACKING, RETURNED = (f"orders/{status}/" for status in ("new", "again", "packing", "returned"))
DONE, QUARANTINE = "sent/done/", "orders/quarantined/"

namespaces = (f"audit{n}" for n in itertools.count())


@dataclass
class Shop:
    """A board on which each kind of item stands, and the means to forge what Redis holds of it."""

    store: Store
    blackboard: Blackboard
    held: Claimed

    async def audit(self) -> AuditReport:
        return await audit(self.store, self.blackboard.namespace, BOARD.name)

    async def raw(self, *parts: Any) -> Any:
        return await self.store.command(*parts)

    async def record(self, item_id: str) -> list[str]:
        return (await self.raw("HGET", self.blackboard.keys.items, item_id)).decode().split("|")

    async def forge(self, item_id: str, **fields: Any) -> None:
        record = await self.record(item_id)
        for name, value in fields.items():
            record[FIELDS.index(name)] = str(value)
        await self.raw("HSET", self.blackboard.keys.items, item_id, "|".join(record))

    async def forge_event(
        self, kind: str, item: str, before: str, after: str, *, by: int = 1, token: Any = "", agent: str = ""
    ) -> None:
        item_now = await self.blackboard.find(item)
        version, previous = (item_now.version, item_now.event) if item_now else (0, "")
        await self.raw(
            "XADD", self.blackboard.keys.events, "*", "kind", kind, "from", before, "to", after, "agent", agent,
            "token", token, "reason", "", "trace", "", "items", f"{item} {version + by} {previous}",
        )  # fmt: skip

    def line(self, lane: str) -> str:
        return self.blackboard.keys.lane(lane).line

    def timed(self, lane: str) -> str:
        return self.blackboard.keys.lane(lane).timed


FIELDS = (
    "event", "created_ms", "priority", "seq", "request", "dedup", "section", "status", "requires", "version", "attempts",
    "crashes", "token", "holder", "origin", "endings",
)  # fmt: skip


@pytest.fixture
async def shop(redis_server: RedisServer, connect: Connect) -> AsyncIterator[Shop]:
    store = await connect(redis_server.url)
    async with Blackboard(store, BOARD, namespace=next(namespaces)) as blackboard:
        await blackboard.submit(
            *(Submission(id=item, section="orders", payload={"of": item}) for item in ("sent", "back", "worn", "held")),
        )
        [sent, back, worn, held] = await blackboard.claim("orders", "ann", most=4)
        await blackboard.complete(sent.claim, result={"parcel": 1})
        await blackboard.complete(back.claim, "orders/returned")
        await blackboard.fail(worn.claim, "no such thing", give_up=True)
        await blackboard.submit(
            Submission(id="first", section="orders", payload={}, content_hash="same"),
            Submission(id="other", section="orders", payload={}, content_hash="else"),
            Submission(id="later", section="orders", payload={}, delay_s=600),
        )
        yield Shop(store, blackboard, held)


Connect = Callable[[str], Awaitable[Store]]
Forgery = Callable[[Shop], Awaitable[Any]]
forgeries: list[Any] = []


def forgery(invariant: str, *items: str) -> Callable[[Forgery], Forgery]:
    """Register a way to forge the board, what the audit has to call it, and the items to name (none: the board)."""

    def register(forge: Forgery) -> Forgery:
        forgeries.append(pytest.param(forge, invariant, set(items), id=f"{invariant}-{forge.__name__}"))
        return forge

    return register


# -- I1: each item in exactly one place ------------------------------------------------------------------------------


@forgery("I1", "first")
async def an_item_taken_out_of_its_line(shop: Shop) -> None:
    await shop.raw("ZREM", shop.line(NEW), "first")


@forgery("I1", "other")
async def an_item_pushed_to_the_front_of_its_line(shop: Shop) -> None:
    await shop.raw("ZADD", shop.line(NEW), 1, "other")


@forgery("I1", "later")
async def a_delayed_item_taken_out_of_its_timed_set(shop: Shop) -> None:
    await shop.raw("ZREM", shop.timed(NEW), "later")


@forgery("I1", "sent")
async def a_finished_item_put_into_a_line_again(shop: Shop) -> None:
    await shop.raw("ZADD", shop.line(NEW), 1, "sent")


@forgery("I1", "back")
async def a_resting_item_put_into_a_timed_set(shop: Shop) -> None:
    await shop.raw("ZADD", shop.timed(NEW), 1, "back")


@forgery("I1", "ghost")
async def a_line_member_without_a_record(shop: Shop) -> None:
    await shop.raw("ZADD", shop.line(NEW), 1, "ghost")


@forgery("I1", "ghost")
async def a_payload_without_a_record(shop: Shop) -> None:
    await shop.raw("HSET", shop.blackboard.keys.payloads, "ghost", "{}")


@forgery("I1", "first")
async def a_payload_gone(shop: Shop) -> None:
    await shop.raw("HDEL", shop.blackboard.keys.payloads, "first")


@forgery("I1", "first")
async def a_torn_record(shop: Shop) -> None:
    await shop.raw("HSET", shop.blackboard.keys.items, "first", "orders|new|")


@forgery("I1", "first")
async def a_record_with_a_word_for_a_number(shop: Shop) -> None:
    await shop.forge("first", version="many")


@forgery("I1", "sent")
async def an_item_gone_without_a_trace(shop: Shop) -> None:
    keys = shop.blackboard.keys
    await shop.raw("HDEL", keys.items, "sent")
    await shop.raw("HDEL", keys.payloads, "sent")
    await shop.raw("ZREM", shop.line(DONE), "sent")
    await shop.raw("HINCRBY", keys.counts, DONE, -1)
    await shop.raw("HINCRBY", keys.counts, "sent", -1)


@forgery("I1")
async def a_lane_counter_that_is_too_high(shop: Shop) -> None:
    await shop.raw("HINCRBY", shop.blackboard.keys.counts, NEW, 1)


@forgery("I1")
async def a_section_counter_that_is_gone(shop: Shop) -> None:
    await shop.raw("HDEL", shop.blackboard.keys.counts, "orders")


# -- I2: one live claim, of which all tell the same ------------------------------------------------------------------


@forgery("I2", "held")
async def a_claim_without_an_end(shop: Shop) -> None:
    await shop.raw("ZREM", shop.timed(NEW), "held")


@forgery("I2", "held")
async def a_claimed_item_that_is_offered_too(shop: Shop) -> None:
    await shop.raw("ZADD", shop.line(NEW), 1, "held")


@forgery("I2", "held")
async def a_claim_that_nobody_holds(shop: Shop) -> None:
    await shop.forge("held", holder="")


@forgery("I2", "held")
async def a_claim_from_a_status_that_leads_elsewhere(shop: Shop) -> None:
    await shop.forge("held", origin="returned")


@forgery("I2")
async def a_claim_counted_for_the_wrong_agent(shop: Shop) -> None:
    await shop.raw("HINCRBY", shop.blackboard.keys.held, "bob", 1)


@forgery("I2")
async def a_claim_not_counted(shop: Shop) -> None:
    await shop.raw("HDEL", shop.blackboard.keys.held, "ann")


@forgery("I2", "held")
async def a_second_claim_beside_the_first(shop: Shop) -> None:
    item = shop.held.item
    await shop.forge_event("claimed", "held", NEW, PACKING, by=1, token=item.token + 1, agent="bob")
    event = await shop.blackboard.events.last_id()
    await shop.forge("held", holder="bob", token=item.token + 1, version=item.version + 1, event=event, attempts=2)


@forgery("I2", "held")
async def an_item_moved_under_its_holder(shop: Shop) -> None:
    await shop.forge_event("moved", "held", PACKING, RETURNED)
    await shop.forge("held", version=shop.held.item.version + 1, event=await shop.blackboard.events.last_id())


# -- I3: tokens ------------------------------------------------------------------------------------------------------


@forgery("I3", "sent", "back", "worn", "held")
async def the_newest_token_turned_back(shop: Shop) -> None:
    await shop.raw("SET", shop.blackboard.keys.fence, 1)


@forgery("I3", "held")
async def an_ending_with_an_old_token(shop: Shop) -> None:
    item = shop.held.item
    await shop.forge_event("handed_back", "held", PACKING, NEW, token=item.token - 1, agent="ann")
    await shop.forge("held", version=item.version + 1, event=await shop.blackboard.events.last_id())


@forgery("I3", "first")
async def a_claim_with_a_token_from_the_past(shop: Shop) -> None:
    [claimed] = await shop.blackboard.claim("orders", "bob")
    assert claimed.item.id == "first"
    await shop.blackboard.hand_back(claimed.claim)
    await shop.forge_event("claimed", "first", NEW, PACKING, token=claimed.claim.token, agent="bob")
    await shop.forge("first", version=4, event=await shop.blackboard.events.last_id())


# -- I6: steps -------------------------------------------------------------------------------------------------------


@forgery("I6", "first")
async def a_status_that_the_board_does_not_have(shop: Shop) -> None:
    await shop.forge("first", status="lost")


@forgery("I6", "first")
async def a_step_that_the_board_does_not_allow(shop: Shop) -> None:
    await shop.forge_event("moved", "first", NEW, DONE)
    event = await shop.blackboard.events.last_id()
    await shop.forge("first", section="sent", status="done", version=2, event=event)


@forgery("I6", "first")
async def a_version_left_out(shop: Shop) -> None:
    await shop.forge_event("updated", "first", NEW, NEW, by=2)
    await shop.forge("first", version=3, event=await shop.blackboard.events.last_id())


@forgery("I6", "first")
async def a_kind_of_event_that_there_is_not(shop: Shop) -> None:
    await shop.forge_event("teleported", "first", NEW, NEW)
    await shop.forge("first", version=2, event=await shop.blackboard.events.last_id())


@forgery("I6")
async def a_rule_added(shop: Shop) -> None:
    await shop.raw("HSET", shop.blackboard.keys.rules, "step|new|done", "1")


@forgery("I6")
async def a_rule_taken_away(shop: Shop) -> None:
    await shop.raw("HDEL", shop.blackboard.keys.rules, "step|packing|done")


@forgery("I6")
async def a_limit_raised(shop: Shop) -> None:
    await shop.raw("HSET", shop.blackboard.keys.rules, "limits|orders", "0|0|0|999999")


# -- I7: the log gives the state -------------------------------------------------------------------------------------


@forgery("I7", "first")
async def a_version_raised_in_secret(shop: Shop) -> None:
    await shop.forge("first", version=7)


@forgery("I7", "first")
async def an_item_moved_in_secret(shop: Shop) -> None:
    keys = shop.blackboard.keys
    await shop.forge("first", section="sent", status="done")
    await shop.raw("ZREM", shop.line(NEW), "first")
    await shop.raw("ZADD", shop.line(DONE), 1, "first")
    for field, n in ((NEW, -1), ("orders", -1), (DONE, 1), ("sent", 1)):
        await shop.raw("HINCRBY", keys.counts, field, n)


@forgery("I7", "held")
async def a_holder_exchanged(shop: Shop) -> None:
    await shop.forge("held", holder="bob")


@forgery("I7", "held")
async def a_token_exchanged(shop: Shop) -> None:
    await shop.forge("held", token=int((await shop.record("held"))[FIELDS.index("token")]) - 1)


@forgery("I7", "first")
async def a_change_that_did_not_happen(shop: Shop) -> None:
    await shop.forge_event("updated", "first", NEW, NEW)
    await shop.forge("first", event=await shop.blackboard.events.last_id())


@forgery("I7", "first")
async def an_event_that_starts_elsewhere(shop: Shop) -> None:
    await shop.forge_event("moved", "first", RETURNED, NEW)
    await shop.forge("first", version=2, event=await shop.blackboard.events.last_id())


@forgery("I7", "first", "other", "later")  # they came in one event
async def a_birth_cut_out_of_the_log(shop: Shop) -> None:
    await shop.raw("XDEL", shop.blackboard.keys.events, (await shop.record("first"))[FIELDS.index("event")])


@forgery("I7", "back")
async def an_ending_cut_out_of_the_log(shop: Shop) -> None:
    await shop.raw("XDEL", shop.blackboard.keys.events, (await shop.record("back"))[FIELDS.index("event")])


@forgery("I7", "stranger")
async def a_record_that_the_log_knows_nothing_of(shop: Shop) -> None:
    keys = shop.blackboard.keys
    await shop.raw("HSET", keys.items, "stranger", "|".join(await shop.record("first")))
    await shop.raw("HSET", keys.payloads, "stranger", "{}")
    await shop.raw("ZADD", shop.line(NEW), 9, "stranger")


@forgery("I7")
async def an_event_that_cannot_be_read(shop: Shop) -> None:
    await shop.raw("XADD", shop.blackboard.keys.events, "*", "kind", "moved", "items", "first")


# -- I8: one item for a content hash ---------------------------------------------------------------------------------


@forgery("I8", "first")
async def a_hash_made_over_to_another_item(shop: Shop) -> None:
    await shop.raw("HSET", shop.blackboard.keys.dedup, "same", "other|0")


@forgery("I8", "first")
async def a_hash_forgotten(shop: Shop) -> None:
    await shop.raw("HDEL", shop.blackboard.keys.dedup, "same")


@forgery("I8", "other")
async def a_second_item_with_the_same_hash(shop: Shop) -> None:
    await shop.forge("other", dedup="same")


# -- I12: attempts, crashes, quarantine ------------------------------------------------------------------------------


@forgery("I12", "first")
async def a_worn_out_item_that_is_offered(shop: Shop) -> None:
    await shop.forge("first", crashes=2)


@forgery("I12", "first")
async def an_item_out_of_attempts_that_is_offered(shop: Shop) -> None:
    await shop.forge("first", attempts=3)


@forgery("I12", "worn")
async def a_claim_out_of_quarantine(shop: Shop) -> None:
    token = int((await shop.record("worn"))[FIELDS.index("token")]) + 1
    await shop.forge_event("claimed", "worn", QUARANTINE, PACKING, token=token, agent="bob")
    event = await shop.blackboard.events.last_id()
    await shop.forge("worn", status="packing", origin="new", holder="bob", token=token, version=4, event=event)


@forgery("I12", "held")
async def an_attempt_forgotten(shop: Shop) -> None:
    await shop.forge("held", attempts=0)


@forgery("I12", "worn")
async def crashes_forgotten(shop: Shop) -> None:
    await shop.blackboard.release("worn")
    await shop.forge("worn", crashes=1)


@pytest.mark.parametrize(("forge", "invariant", "items"), forgeries)
async def test_what_was_forged_is_found_and_named(shop: Shop, forge: Forgery, invariant: str, items: set[str]) -> None:
    before = await shop.audit()
    assert before.clean, before.breaches

    await forge(shop)

    report = await shop.audit()
    found = {breach.item for breach in report.breaches if breach.invariant == invariant}
    assert (items or {""}) <= found, report.breaches
    assert {breach.item for breach in report.breaches} - {""} <= items, f"others are suspected too: {report.breaches}"
    assert not report.clean
    assert not report.skipped


async def test_a_board_that_has_seen_everything_is_clean(shop: Shop) -> None:
    report = await shop.audit()

    assert (report.clean, report.items, report.breaches, report.skipped) == (True, 7, [], [])
    assert report.events == 14
    assert report.as_dict()["clean"] is True


async def test_a_report_says_what_it_found_in_words(shop: Shop) -> None:
    await shop.raw("HDEL", shop.blackboard.keys.payloads, "first")

    report = await shop.audit()

    assert [str(breach) for breach in report.breaches] == ["I1 first: its payload is gone"]
    assert report.as_dict()["breaches"] == [{"invariant": "I1", "item": "first", "what": "its payload is gone"}]


async def test_a_hash_whose_time_is_over_may_be_used_again(shop: Shop) -> None:
    await shop.blackboard.submit(Submission(id="old", section="orders", payload={}, content_hash="passing", dedup_s=60))
    await shop.raw("HINCRBY", shop.blackboard.keys.rules, "clock_offset_ms", 61_000)

    [again] = await shop.blackboard.submit(
        Submission(id="young", section="orders", payload={}, content_hash="passing", dedup_s=60)
    )

    assert again.accepted
    assert (await shop.audit()).breaches == []


async def test_the_audit_of_a_board_that_is_not_there_says_so(redis_server: RedisServer, connect: Connect) -> None:
    store = await connect(redis_server.url)

    with pytest.raises(ConfigurationError, match="no board 'shop' in namespace 'nowhere'"):
        await audit(store, "nowhere", "shop")


async def test_the_audit_of_a_torn_definition_says_so(shop: Shop) -> None:
    await shop.raw("HSET", shop.blackboard.keys.rules, "definition", "{")

    with pytest.raises(ConfigurationError, match="torn"):
        await shop.audit()


async def test_the_audit_changes_nothing(shop: Shop) -> None:
    await a_claimed_item_that_is_offered_too(shop)  # so that it looks again
    keys = sorted(await shop.raw("KEYS", shop.blackboard.keys.prefix.replace("{", "\\{") + "*"))

    async def state() -> list[Any]:
        return await shop.store.commands(*(("DUMP", key) for key in keys))

    before = await state()
    await shop.audit()

    assert await state() == before
    assert sorted(await shop.raw("KEYS", shop.blackboard.keys.prefix.replace("{", "\\{") + "*")) == keys


async def test_the_audit_never_cries_wolf_over_a_board_at_full_work(
    redis_server: RedisServer, connect: Connect
) -> None:
    """Four workers, thousands of items, and an audit that begins again as soon as it is done."""
    rounds, batch, namespace, random = 12, 50, next(namespaces), Random(7)
    finished, store = asyncio.Event(), await connect(redis_server.url)
    async with Blackboard(store, BOARD, namespace=namespace) as blackboard:

        async def produce(first: int) -> None:
            for start in range(first, first + 5 * batch, batch):
                await blackboard.submit(
                    *(
                        Submission(id=f"o{n}", section="orders", payload={"n": n}, priority=n % 3, content_hash=f"h{n}")
                        for n in range(start, start + batch)
                    )
                )
                await asyncio.sleep(0.01)  # for the audit, which shares this process with its subjects

        async def work(agent: str) -> None:
            while not finished.is_set():
                hand = await blackboard.claim("orders", agent, most=random.randint(1, 30), lease_s=0.2)
                await asyncio.gather(*map(end, hand))
                await asyncio.sleep(0.002)

        async def end(each: Claimed) -> None:
            with contextlib.suppress(ClaimLostError):  # this computer may be slower than a lease
                match random.choices(["complete", "fail", "hand back", "forget"], [90, 4, 4, 2]):
                    case ["complete"]:
                        await blackboard.complete(each.claim, patch={"by": each.claim.agent_id}, of=each.item)
                    case ["fail"]:
                        await blackboard.fail(each.claim, "dropped", retry_in_s=random.choice([0, 0.05]))
                    case ["hand back"]:
                        await blackboard.hand_back(each.claim)

        async def audit_at_work() -> list[AuditReport]:
            reports = []
            for n in range(rounds):
                report, _ = await asyncio.gather(audit(store, namespace, BOARD.name), produce(n * 5 * batch))
                reports.append(report)
            finished.set()
            return reports

        reports, *_ = await asyncio.gather(audit_at_work(), *map(work, "abcd"))
        last = await audit(store, namespace, BOARD.name)

    assert [report.breaches for report in reports if not report.clean] == []
    assert last.clean, last.breaches
    assert (last.items, last.skipped) == (rounds * 5 * batch, [])
