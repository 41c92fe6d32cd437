"""Durable steps: done once, recorded with the claim's token, returned after a crash, and replayed at no cost."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from given import Tape, clock_of
from pydantic import BaseModel

from swarm_infrastructure import (
    BaseAgent,
    Board,
    Claims,
    Item,
    Outcome,
    ReplayError,
    Section,
    Settings,
    Submission,
    SwarmInfrastructure,
    Work,
)
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.errors import ClaimLostError, InvalidInputError, StoreUnavailableError
from swarm_infrastructure.failure_recovery import steps as module

STORIES = Board(
    name="stories",
    sections={
        "drafts": Section(ready={"waiting": "writing"}, then={"writing": "reviews/waiting"}),
        "reviews": Section(ready={"waiting": "reading"}, resting=("done",), then={"reading": "reviews/done"}),
    },
    steps={"writing": frozenset({"waiting"}), "reading": frozenset({"done"})},
    final=frozenset({"done"}),
)


class Script(BaseModel):
    text: str
    scenes: list[str] = []


@dataclass
class Voice:
    name: str
    speed: float = 1.0


class Counter:
    """A step's work, and how often it was done."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        return {"n": len(self.calls), "of": args}


@pytest.fixture
async def swarm(redis_server: Any) -> AsyncIterator[SwarmInfrastructure]:
    settings = Settings(redis_url=redis_server.url, namespace="t" + secrets.token_hex(6))
    async with SwarmInfrastructure(STORIES, settings) as swarm:
        yield swarm
        report = await audit(swarm.blackboard.store, settings.namespace, STORIES.name)
        assert report.clean, report.breaches


async def given_work(swarm: SwarmInfrastructure, agent: str = "ada", *, section: str = "drafts") -> Work:
    if await swarm.blackboard.find("a") is None:
        await swarm.blackboard.submit(Submission(id="a", section="drafts", payload={"topic": "rivers"}))
    [claimed] = await swarm.blackboard.claim(section, agent)
    return Work(claimed, swarm.blackboard.leases.keep(claimed.claim), swarm)


async def crashed(swarm: SwarmInfrastructure, work: Work) -> None:
    """The worker is gone, and its lease has run out."""
    swarm.blackboard.leases.drop(work.claim)
    await clock_of(swarm.blackboard).advance(s=31)


async def test_a_step_is_done_once_and_after_a_crash_its_record_is_returned(swarm: SwarmInfrastructure) -> None:
    draft, work = Counter(), await given_work(swarm)
    first = await work.step("draft", draft, "rivers", length=200)
    await crashed(swarm, work)
    again = await given_work(swarm, "bob")

    assert await again.step("draft", draft, "rivers", length=200) == first == {"n": 1, "of": ["rivers"]}
    assert len(draft.calls) == 1


async def test_other_arguments_are_another_step_and_their_order_by_name_is_not(swarm: SwarmInfrastructure) -> None:
    draft, work = Counter(), await given_work(swarm)
    await work.step("draft", draft, a=1, b=2)
    await work.step("draft", draft, b=2, a=1)
    await work.step("draft", draft, a=1, b=3)
    await work.step("final", draft, a=1, b=2)
    assert len(draft.calls) == 3


async def test_models_and_dataclasses_go_in_and_a_schema_brings_a_model_out(swarm: SwarmInfrastructure) -> None:
    work = await given_work(swarm)

    def write(script: Script, voice: Voice) -> Script:  # no coroutine
        return Script(text=script.text.upper(), scenes=[voice.name])

    for _ in range(2):  # done, and from the record: the same
        written = await work.step("write", write, Script(text="hi"), Voice("anna"), schema=Script)
        assert written == Script(text="HI", scenes=["anna"])
    assert await work.step("write", write, Script(text="hi"), Voice("anna")) == {"text": "HI", "scenes": ["anna"]}


async def test_who_has_lost_the_item_cannot_record(swarm: SwarmInfrastructure) -> None:
    work = await given_work(swarm)

    async def slow() -> str:
        await crashed(swarm, work)
        await given_work(swarm, "bob")
        return "stale"

    with pytest.raises(ClaimLostError, match="'ada' no longer holds item 'a'"):
        await work.step("draft", slow)
    assert await swarm.failure_recovery.steps.list("a") == []


async def test_who_holds_no_claim_records_beside_the_holder_and_without_a_stage(swarm: SwarmInfrastructure) -> None:
    work, steps = await given_work(swarm), swarm.failure_recovery.steps
    assert await steps.record("a", "judged:1", b'"fine"', claim=None) == b'"fine"'
    assert await steps.record("a", "judged:1", b'"other"', claim=work.claim) == b'"fine"'
    assert [(each.name, each.stage, each.token) for each in await steps.list("a")] == [("judged", "", 0)]


async def test_a_lease_that_ran_out_is_lost_also_if_nobody_took_the_item_yet(swarm: SwarmInfrastructure) -> None:
    work = await given_work(swarm)
    await crashed(swarm, work)
    with pytest.raises(ClaimLostError, match="the lease ran out"):
        await work.step("draft", Counter())


async def test_a_revoked_agent_cannot_record(swarm: SwarmInfrastructure) -> None:
    work = await given_work(swarm)
    await swarm.blackboard.store.command("HSET", swarm.blackboard.keys.gates, "agent:ada", "revoked")
    with pytest.raises(ClaimLostError, match="revoked"):
        await work.step("draft", Counter())


async def test_a_failed_step_leaves_no_record(swarm: SwarmInfrastructure) -> None:
    work = await given_work(swarm)

    async def fail() -> None:
        raise ConnectionError("down")

    with pytest.raises(ConnectionError):
        await work.step("draft", fail)
    assert await work.step("draft", Counter()) == {"n": 1, "of": []}


async def test_of_two_that_do_a_step_at_once_both_get_the_first_record(swarm: SwarmInfrastructure) -> None:
    work = await given_work(swarm)
    tape = Tape(swarm.blackboard.store)
    await work.step("draft", Counter())
    sent = tape.last("record_step")
    assert await tape.again(sent) == sent.answer  # a lost reply
    other = type(sent)(sent.function, sent.keys, [*sent.args[:4], b'"other"', *sent.args[5:]], None)
    assert await tape.again(other) == sent.answer


async def test_of_two_calls_of_a_step_at_once_one_takes_the_record_of_the_other(swarm: SwarmInfrastructure) -> None:
    work, begun, calls = await given_work(swarm), asyncio.Event(), list[str]()

    async def render(text: str) -> str:
        calls.append(text)
        begun.set()
        await swarm.blackboard.store.command("PING")  # others could go on meanwhile
        return text.upper()

    first = asyncio.create_task(work.step("render", render, "a"))
    await begun.wait()
    answers = await asyncio.gather(first, *(work.step("render", render, text) for text in ("a", "b", "a")))
    assert (answers, sorted(calls)) == (["A", "A", "B", "A"], ["a", "b"])


async def test_who_waits_for_a_step_that_fails_does_it_itself(swarm: SwarmInfrastructure) -> None:
    work, calls = await given_work(swarm), list[int]()

    async def render() -> int:
        calls.append(1)
        await swarm.blackboard.store.command("PING")
        if len(calls) == 1:
            raise ValueError("no")
        return len(calls)

    failed, done = await asyncio.gather(
        work.step("render", render), work.step("render", render), return_exceptions=True
    )
    assert (str(failed), done) == ("no", 2)


async def test_a_step_within_a_step_of_the_same_name_does_not_wait_for_it(swarm: SwarmInfrastructure) -> None:
    work = await given_work(swarm)

    async def outer() -> str:
        return f"around {await work.step('draft', lambda: 'inner')}"

    async with asyncio.timeout(10):
        assert await work.step("draft", outer) == "inner"  # it was on record first


async def test_the_outside_world_gets_the_same_key_in_every_attempt(swarm: SwarmInfrastructure) -> None:
    keys: list[str] = []

    async def publish(text: str, *, idempotency_key: str) -> None:
        keys.append(idempotency_key)
        if len(keys) == 1:
            raise ConnectionError("the reply was lost")

    work = await given_work(swarm)
    with pytest.raises(ConnectionError):
        await work.step("publish", publish, "hello")
    await crashed(swarm, work)
    again = await given_work(swarm, "bob")
    await again.step("publish", publish, "hello")
    assert keys == [again.step_key("publish", "hello")] * 2
    assert keys[0].startswith("a:drafts:waiting:publish:")


@pytest.mark.parametrize("name", ["", "@replay", "x" * 101, "two\nlines"])
async def test_a_name_that_could_not_be_read_back_is_refused(swarm: SwarmInfrastructure, name: str) -> None:
    with pytest.raises(InvalidInputError, match="step"):
        await (await given_work(swarm)).step(name, Counter())


async def test_what_is_no_json_is_refused_before_it_is_done_or_recorded(swarm: SwarmInfrastructure) -> None:
    work, draft = await given_work(swarm), Counter()
    with pytest.raises(InvalidInputError, match="arguments of step 'draft'"):
        await work.step("draft", draft, object())
    assert draft.calls == []
    with pytest.raises(InvalidInputError, match="answer of step 'draft'"):
        await work.step("draft", lambda: object())
    assert await swarm.failure_recovery.steps.list("a") == []


async def test_size_and_number_of_records_have_a_limit(
    swarm: SwarmInfrastructure, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = await given_work(swarm)
    with pytest.raises(InvalidInputError, match="at most 1,048,576"):
        await work.step("draft", lambda: "x" * module.MAX_STEP_BYTES)
    monkeypatch.setattr(module, "MAX_STEPS", 4)
    await work.step("one", Counter())
    await work.step("two", Counter())
    with pytest.raises(InvalidInputError, match="fewer than 4"):
        await work.step("three", Counter())


async def test_records_go_with_their_item(swarm: SwarmInfrastructure) -> None:
    work = await given_work(swarm)
    await work.step("draft", Counter())
    await swarm.blackboard.hand_back(work.claim)
    await swarm.blackboard.delete("drafts", "a")
    assert await swarm.blackboard.store.command("EXISTS", swarm.blackboard.keys.answers("a")) == 0


class Writer(BaseAgent):
    """Two sections, a step in each; the second one reads what the first one wrote."""

    claims = Claims("drafts", "reviews")
    done: Counter
    suffix = ""

    async def process(self, item: Item, work: Work) -> Outcome:
        if item.section == "drafts":
            script = await work.step("draft", self.done, item.payload["topic"] + self.suffix)
            return work.move("reviews", patch={"topic": None, "script": script})
        return work.done(await work.step("review", self.done, item.payload["script"]))


async def run_to_end(swarm: SwarmInfrastructure, item_id: str) -> Item:
    from test_agents import until

    agent = Writer("writer-1", swarm=swarm)
    await agent.start()

    async def ended() -> bool:
        return (await swarm.blackboard.get(item_id)).status in ("done", "quarantined")

    await until(ended)
    await agent.stop()
    return await swarm.blackboard.get(item_id)


async def test_a_finished_item_is_replayed_from_the_beginning_without_doing_anything(
    swarm: SwarmInfrastructure,
) -> None:
    Writer.done, Writer.suffix = Counter(), ""
    await swarm.blackboard.submit(Submission(id="a", section="drafts", payload={"topic": "rivers"}))
    original = await run_to_end(swarm, "a")
    copy_id = await swarm.failure_recovery.steps.replay(swarm.blackboard, "a", agent="anna")
    copy = await run_to_end(swarm, copy_id)

    assert (copy.id, copy.status, copy.result, copy.payload) == (
        "a~replay-1",
        "done",
        original.result,
        original.payload,
    )
    assert len(Writer.done.calls) == 2
    assert await swarm.failure_recovery.steps.original(copy_id) == "a"
    assert (await swarm.blackboard.get("a")).version == original.version


@pytest.mark.parametrize("start", ["reviews", "reviews/waiting", "review"])
async def test_a_replay_can_begin_at_a_later_stage_with_what_the_item_was_then(
    swarm: SwarmInfrastructure, start: str
) -> None:
    Writer.done, Writer.suffix = Counter(), ""
    await swarm.blackboard.submit(Submission(id="a", section="drafts", payload={"topic": "rivers"}))
    original = await run_to_end(swarm, "a")
    copy_id = await swarm.failure_recovery.steps.replay(swarm.blackboard, "a", start=start, copy_id="b")
    kinds = [event.after for event in await swarm.blackboard.history(copy_id)]
    assert kinds == ["reviews/waiting/"]
    assert (await run_to_end(swarm, "b")).result == original.result
    assert len(Writer.done.calls) == 2


async def test_a_replay_of_changed_code_stops_where_it_would_do_something_new(swarm: SwarmInfrastructure) -> None:
    Writer.done, Writer.suffix = Counter(), ""
    await swarm.blackboard.submit(Submission(id="a", section="drafts", payload={"topic": "rivers"}))
    await run_to_end(swarm, "a")
    Writer.suffix = " and lakes"
    copy_id = await swarm.failure_recovery.steps.replay(swarm.blackboard, "a")
    copy = await run_to_end(swarm, copy_id)

    assert copy.status == "quarantined"
    [error] = await swarm.blackboard.errors(copy_id)
    assert "its step 'draft:" in error["error"]
    assert len(Writer.done.calls) == 2


async def test_not_even_a_forged_record_of_a_replay_is_written(swarm: SwarmInfrastructure) -> None:
    work = await given_work(swarm)
    await work.step("draft", Counter())
    copy_id = await swarm.failure_recovery.steps.replay(swarm.blackboard, "a")
    claimed = await swarm.blackboard.claims.claim_item(copy_id, "bob")
    assert claimed is not None
    with pytest.raises(ReplayError):
        await swarm.failure_recovery.steps.record(claimed.item.id, "other:1", b"1", claim=claimed.claim)


async def test_an_item_at_work_does_not_become_a_replay(swarm: SwarmInfrastructure) -> None:
    work = await given_work(swarm)
    await work.step("draft", Counter())
    await swarm.blackboard.submit(Submission(id="b", section="drafts", payload={}))
    with pytest.raises(InvalidInputError, match="id of the copy"):
        await swarm.failure_recovery.steps.replay(swarm.blackboard, "a", copy_id="b")
    assert await swarm.failure_recovery.steps.original("b") is None


async def test_what_cannot_be_replayed_is_said(swarm: SwarmInfrastructure) -> None:
    steps = swarm.failure_recovery.steps
    with pytest.raises(InvalidInputError, match="nothing on record"):
        await steps.replay(swarm.blackboard, "nobody")
    await (await given_work(swarm)).step("draft", Counter())
    with pytest.raises(InvalidInputError, match="drafts/waiting, draft"):
        await steps.replay(swarm.blackboard, "a", start="reviews")


async def test_the_list_says_where_and_when_each_step_was_done(swarm: SwarmInfrastructure) -> None:
    work = await given_work(swarm)
    await work.step("draft", Counter(), "x")
    await work.step("check", Counter())
    first, second = await swarm.failure_recovery.steps.list("a")
    assert (first.name, first.stage, first.token, second.name) == ("draft", "drafts/waiting/", work.token, "check")
    assert 0 < first.at_us < second.at_us
    assert first.answer == b'{"n":1,"of":["x"]}'


async def test_a_replay_brings_forth_no_new_items_and_stays_one(swarm: SwarmInfrastructure) -> None:
    work = await given_work(swarm)
    await work.step("draft", Counter())
    copy_id = await swarm.failure_recovery.steps.replay(swarm.blackboard, "a")
    claimed = await swarm.blackboard.claims.claim_item(copy_id, "bob")
    assert claimed is not None
    copy = Work(claimed, swarm.blackboard.leases.keep(claimed.claim), swarm)
    with pytest.raises(ReplayError, match="submit of child"):
        await copy.submit(Submission(id="child", section="drafts", payload={}))
    assert await swarm.blackboard.find("child") is None
    assert await swarm.blackboard.store.command("TTL", swarm.blackboard.keys.answers(copy_id)) == -1


async def test_a_record_is_kept_when_redis_is_out_of_memory(swarm: SwarmInfrastructure) -> None:
    work, store = await given_work(swarm), swarm.blackboard.store
    before = (await store.command("CONFIG", "GET", "maxmemory"))[b"maxmemory"]
    await store.command("CONFIG", "SET", "maxmemory", "1")
    try:
        assert await work.step("draft", Counter()) == {"n": 1, "of": []}
    finally:
        await store.command("CONFIG", "SET", "maxmemory", before)


async def test_what_was_done_is_recorded_also_if_redis_comes_back_late(
    swarm: SwarmInfrastructure, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, draft, steps = await given_work(swarm), Counter(), swarm.failure_recovery.steps
    record, refusals = steps.record, [1, 2]

    async def late(*args: Any, **more: Any) -> bytes:
        if refusals:
            refusals.pop()
            raise StoreUnavailableError("here", "it is away")
        return await record(*args, **more)

    monkeypatch.setattr(steps, "record", late)
    assert await work.step("draft", draft) == {"n": 1, "of": []}
    assert len(draft.calls) == 1


async def test_a_stage_begins_with_what_the_item_was_at_its_first_record(swarm: SwarmInfrastructure) -> None:
    work = await given_work(swarm)
    await work.step("draft", Counter())
    await swarm.blackboard.update("drafts", "a", {"topic": "lakes"})
    await work.step("check", Counter())
    copy_id = await swarm.failure_recovery.steps.replay(swarm.blackboard, "a")
    assert (await swarm.blackboard.get(copy_id)).payload == {"topic": "rivers"}
