"""The news board: each step of the product's diagram and no other, one story from the feed to the public, duplicates."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from given import Connect, given_claim, given_item, snapshot

from swarm_infrastructure.blackboard import NEWS, Blackboard, BlackboardSection, ContentStatus, NewsItem, Submission
from swarm_infrastructure.errors import InvalidInputError, WrongStatusError
from swarm_infrastructure.testing import ManualClock, RedisServer

S, B = ContentStatus, BlackboardSection

# The product document's diagram, with the ways back and out that its prose names:
#   PENDING → PROCESSING → DEBATING → CONSENSUS_REACHED → PRODUCING → REVIEWING → APPROVED → PUBLISHED
#      ↓          ↓           ↓              ↓               ↓            ↓          ↓
#   FAILED     (retry)   (no consensus)   (failed)        (failed)    (rejected)  (archive)
LEGAL: dict[ContentStatus, set[ContentStatus]] = {
    S.PENDING: {S.PROCESSING, S.FAILED},
    S.PROCESSING: {S.DEBATING, S.FAILED, S.ARCHIVED},
    S.DEBATING: {S.CONSENSUS_REACHED, S.FAILED, S.ARCHIVED},
    S.CONSENSUS_REACHED: {S.PRODUCING, S.FAILED},
    S.PRODUCING: {S.PRODUCING, S.REVIEWING, S.FAILED},  # script, visuals and edit are made one after the other
    S.REVIEWING: {S.APPROVED, S.REJECTED, S.FAILED},
    S.APPROVED: {S.PUBLISHED, S.ARCHIVED},
    S.REJECTED: {S.ARCHIVED},
    S.FAILED: {S.PENDING, S.PROCESSING, S.ARCHIVED},
    S.PUBLISHED: {S.ARCHIVED},
    S.ARCHIVED: set(),
    S.QUARANTINED: set(),  # only a release leads out of it
    S.RECORDED: set(),
}
HOME = {
    S.PENDING: B.RAW_FEED,
    S.PROCESSING: B.RAW_FEED,
    S.FAILED: B.RAW_FEED,
    S.QUARANTINED: B.RAW_FEED,
    S.DEBATING: B.DEBATE_QUEUE,
    S.CONSENSUS_REACHED: B.CONSENSUS,
    S.PRODUCING: B.PRODUCTION_FLOOR,
    S.REVIEWING: B.REVIEW_QUEUE,
    S.APPROVED: B.REVIEW_QUEUE,
    S.REJECTED: B.REVIEW_QUEUE,
    S.PUBLISHED: B.PUBLISHED,
    S.ARCHIVED: B.ARCHIVE,
    S.RECORDED: B.AGENT_STATE,
}
CLAIMED_FROM = {  # statuses of work in somebody's hands, and where a claim finds them
    S.PROCESSING: (B.RAW_FEED, S.PENDING),
    S.DEBATING: (B.DEBATE_QUEUE, S.DEBATING),
    S.PRODUCING: (B.PRODUCTION_FLOOR, S.PRODUCING),
    S.REVIEWING: (B.REVIEW_QUEUE, S.REVIEWING),
    S.APPROVED: (B.REVIEW_QUEUE, S.APPROVED),
}


async def stands(blackboard: Blackboard, item_id: str) -> tuple[str, str, int]:
    item = await blackboard.get(item_id)
    return item.section, item.status, item.version


async def by_transition(blackboard: Blackboard, item_id: str, before: S, after: S) -> bool:
    return await blackboard.transition_status(HOME[before], item_id, after, "editor_1", "because")


async def by_move(blackboard: Blackboard, item_id: str, before: S, after: S) -> bool:
    return await blackboard.move(item_id, HOME[before], HOME[after], status=after)


Step = Callable[[Blackboard, str, S, S], Awaitable[bool]]


async def check_each_step_from(
    blackboard: Blackboard, before: S, step: Step, given: Callable[[str], Awaitable[object]]
) -> None:
    """Try to take an item from *before* to every status there is."""
    assert set(LEGAL) == set(S), "a status was added: say which steps lead to it"
    for after in S:
        item_id = f"to_{after}"
        await given(item_id)
        at_first = await stands(blackboard, item_id)
        if after in LEGAL[before]:
            assert await step(blackboard, item_id, before, after) is True, f"{before} → {after}"
            section, status, version = await stands(blackboard, item_id)
            assert (status, version) == (after, at_first[2] + 1), f"{before} → {after}"
            assert NEWS.section(section).statuses
        else:
            state = await snapshot(blackboard.store)
            with pytest.raises((WrongStatusError, InvalidInputError)):
                await step(blackboard, item_id, before, after)
                pytest.fail(f"{before} → {after} was allowed")
            assert await snapshot(blackboard.store) == state, f"{before} → {after}"


@pytest.mark.parametrize("step", [by_transition, by_move])
@pytest.mark.parametrize("before", S)
async def test_from_each_status_the_legal_steps_are_taken_and_no_others(
    blackboard: Blackboard, before: S, step: Step
) -> None:
    async def given(item_id: str) -> object:
        return await given_item(blackboard, item_id, HOME[before], status=before)

    await check_each_step_from(blackboard, before, step, given)


@pytest.mark.parametrize("before", CLAIMED_FROM)
async def test_completing_a_claim_takes_the_legal_steps_and_no_others(blackboard: Blackboard, before: S) -> None:
    section, ready = CLAIMED_FROM[before]
    claims = {}

    async def given(item_id: str) -> object:
        await given_item(blackboard, item_id, section, status=ready)
        claims[item_id] = await given_claim(blackboard, item_id)
        return claims[item_id]

    async def by_complete(blackboard: Blackboard, item_id: str, before: S, after: S) -> bool:
        return await blackboard.complete(claims[item_id].claim, f"{HOME[after]}/{after}") == 3

    await check_each_step_from(blackboard, before, by_complete, given)


@pytest.mark.parametrize("before", CLAIMED_FROM)
async def test_a_step_by_the_holder_ends_its_claim_and_by_anybody_else_is_refused(
    blackboard: Blackboard, before: S
) -> None:
    section, ready = CLAIMED_FROM[before]
    await given_item(blackboard, "a", section, status=ready)
    claimed = await given_claim(blackboard, "a", "holder_1")
    blackboard.leases.keep(claimed.claim)
    after = sorted(LEGAL[before] - {before, S.FAILED})[0]

    with pytest.raises(Exception, match="holder_1"):
        await blackboard.transition_status(section, "a", after, "somebody_else")
    assert await blackboard.transition_status(section, "a", after, "holder_1", "done") is True

    item = await blackboard.get("a")
    assert (item.status, item.holder) == (after, "")
    assert (await blackboard.history("a"))[-1].kind == "completed"


# --- a life -----------------------------------------------------------------------------------------------------------


async def test_a_story_is_driven_from_the_feed_to_the_public(blackboard: Blackboard) -> None:
    story = NewsItem(id="news_001", title="Moon landing", content="They have landed.", source="wire")
    await blackboard.write(B.RAW_FEED, story.id, story.to_dict())

    async def work(
        section: str, agent: str, to: str | None = None, needs: str = "", then_needs: str = "", **facts: object
    ) -> None:
        [claimed] = await blackboard.claim(section, agent, capabilities=[needs] if needs else [])
        assert claimed.item.id == "news_001"
        await blackboard.complete(claimed.claim, to, requires=then_needs, patch={f"by_{agent}": True}, **facts)  # type: ignore[arg-type]

    await work(B.RAW_FEED, "scout")
    await work(B.DEBATE_QUEUE, "debater", result={"votes": 3})
    await work(B.CONSENSUS, "planner", f"{B.PRODUCTION_FLOOR}/{S.PRODUCING}", then_needs="script")
    floor = f"{B.PRODUCTION_FLOOR}/{S.PRODUCING}"
    await work(B.PRODUCTION_FLOOR, "writer", floor, needs="script", then_needs="visuals")
    await work(B.PRODUCTION_FLOOR, "designer", floor, needs="visuals", then_needs="edit")
    await work(B.PRODUCTION_FLOOR, "editor", needs="edit")
    await work(B.REVIEW_QUEUE, "reviewer")
    await work(B.REVIEW_QUEUE, "publisher")

    read = await blackboard.read(B.PUBLISHED, "news_001")
    assert read is not None
    assert (read["status"], read["title"]) == ("published", "Moon landing")
    agents = ["scout", "debater", "planner", "writer", "designer", "editor", "reviewer", "publisher"]
    assert all(read[f"by_{agent}"] for agent in agents)
    path = [event.after.split("/")[1] for event in await blackboard.history("news_001") if event.kind != "claimed"]
    assert path == [
        "pending", "debating", "consensus_reached", "producing", "producing", "producing", "reviewing", "approved", "published",
    ]  # fmt: skip
    assert await blackboard.archive("news_001") > 0


async def test_a_story_that_fails_waits_as_failed_and_is_taken_up_again(
    blackboard: Blackboard, news_clock: ManualClock
) -> None:
    await given_item(blackboard, "a", B.DEBATE_QUEUE)
    await blackboard.fail((await given_claim(blackboard, "a")).claim, "no quorum", retry_in_s=5)
    assert (await stands(blackboard, "a"))[:2] == ("debate_queue", "failed")

    await news_clock.advance(s=5)
    [again] = await blackboard.claim(B.DEBATE_QUEUE, "debater_2")

    assert (again.item.status, again.item.origin, again.item.attempts) == ("debating", "failed", 2)
    await blackboard.complete(again.claim)
    assert (await stands(blackboard, "a"))[:2] == ("consensus", "consensus_reached")


async def test_a_story_that_is_rejected_is_archived_and_its_content_stays_known(blackboard: Blackboard) -> None:
    story = {"title": "Old news", "content": "Nobody cares.", "source": "wire"}
    await blackboard.write(B.REVIEW_QUEUE, "a", story)
    await blackboard.complete((await given_claim(blackboard, "a")).claim, f"{B.REVIEW_QUEUE}/{S.REJECTED}")

    assert await blackboard.claim(B.REVIEW_QUEUE, "reviewer_2") == []
    await blackboard.archive("a", agent="ann")

    assert (await stands(blackboard, "a"))[:2] == ("archive", "archived")
    assert await blackboard.write(B.RAW_FEED, "b", story) is False


async def test_every_section_lists_what_stands_in_it_and_nothing_else(blackboard: Blackboard) -> None:
    for section in B:
        await given_item(blackboard, f"in_{section}", section)

    for section in B:
        assert [item["id"] for item in await blackboard.read_all(section)] == [f"in_{section}"]
    assert {name: row["total"] for name, row in (await blackboard.get_all_stats()).items()} == dict.fromkeys(B, 1)


# --- duplicates -------------------------------------------------------------------------------------------------------


async def test_a_duplicate_is_recognised_after_moves_the_archive_and_a_restart_of_redis(
    connect: Connect, request: pytest.FixtureRequest
) -> None:
    story = NewsItem(id="first", title="Breaking", content="News", source="wire")
    kind = request.config.getoption("--redis-kind")
    with RedisServer(kind, persist=True, options={"appendfsync": "always"}) as server:
        async with Blackboard(await connect(server.url), NEWS) as blackboard:
            assert await blackboard.write(B.RAW_FEED, "first", story.to_dict())
            await blackboard.move("first", B.RAW_FEED, B.RAW_FEED, status=S.PROCESSING)
            await blackboard.move("first", B.RAW_FEED, B.DEBATE_QUEUE)
            assert not await blackboard.write(B.RAW_FEED, "second", story.to_dict() | {"id": "second"})
            await blackboard.archive("first")
            assert not await blackboard.write(B.RAW_FEED, "third", story.to_dict() | {"id": "third"})

        server.kill()
        server.restart()

        async with Blackboard(await connect(server.url), NEWS) as blackboard:
            assert not await blackboard.write(B.RAW_FEED, "fourth", story.to_dict() | {"id": "fourth"})
            assert (await stands(blackboard, "first"))[:2] == ("archive", "archived")


async def test_the_same_text_has_the_same_hash_and_another_text_has_not() -> None:
    one = NewsItem(id="1", title="Moon landing", content="They have landed.", source="wire")
    same = NewsItem(id="2", title="MOON  landing!", content="They have landed", source="Wire")
    other = NewsItem(id="3", title="Moon landing", content="They have not landed.", source="wire")

    assert one.content_hash == same.content_hash != other.content_hash
    assert NewsItem.from_dict(one.to_dict() | {"_bb_version": 3}) == one
    with pytest.raises(ValueError, match="nonsense"):
        NewsItem(id="4", title="", content="", source="", status="nonsense")  # type: ignore[arg-type]


# --- the product document's own calls, word for word ------------------------------------------------------------------


async def test_the_product_documents_calls_work_as_written(blackboard: Blackboard) -> None:
    # "Duplicate Detection"
    # Content hash-based deduplication
    news_item = NewsItem(
        id="news_001",
        title="Breaking News",
        content="Content here...",
        source="NewsSource",
    )
    # Automatically computes content_hash for deduplication
    assert news_item.content_hash

    # Write with duplicate check
    success = await blackboard.write(
        section=BlackboardSection.RAW_FEED,
        item_id=news_item.id,
        data=news_item.to_dict(),
        check_duplicate=True,  # Rejects if hash exists
    )
    assert success is True
    assert (
        await blackboard.write(
            section=BlackboardSection.RAW_FEED, item_id="news_002", data=news_item.to_dict(), check_duplicate=True
        )
        is False
    )

    # "Locking Mechanism"
    item_id, agent_id, section, updates = news_item.id, "analyst_1", BlackboardSection.RAW_FEED, {"topics": ["AI"]}
    # Distributed lock for exclusive access
    async with blackboard.acquire_lock(item_id, agent_id):
        # Only this agent can modify the item
        await blackboard.update(section, item_id, updates)

    # "Agent Implementation Pattern"
    items = await blackboard.query_by_status(section=BlackboardSection.RAW_FEED, status=ContentStatus.PENDING)
    assert [(item["id"], item["status"], item["topics"]) for item in items] == [("news_001", "pending", ["AI"])]

    # "State Transitions"
    for before, after in (
        (B.RAW_FEED, S.PROCESSING), (B.RAW_FEED, S.DEBATING), (B.DEBATE_QUEUE, S.CONSENSUS_REACHED),
        (B.CONSENSUS, S.PRODUCING), (B.CONSENSUS, S.REVIEWING), (B.REVIEW_QUEUE, S.APPROVED), (B.REVIEW_QUEUE, S.PUBLISHED),
    ):  # fmt: skip
        assert await blackboard.transition_status(before, item_id, after, agent_id)
    assert (await stands(blackboard, item_id))[:2] == ("published", "published")


def test_the_sections_and_statuses_of_the_product_document_are_there() -> None:
    sections = "RAW_FEED DEBATE_QUEUE CONSENSUS PRODUCTION_FLOOR REVIEW_QUEUE PUBLISHED ARCHIVE AGENT_STATE"
    statuses = (
        "PENDING PROCESSING DEBATING CONSENSUS_REACHED PRODUCING REVIEWING APPROVED REJECTED PUBLISHED FAILED ARCHIVED"
    )

    assert set(sections.split()) == set(B.__members__)
    assert set(statuses.split()) <= set(S.__members__)
    assert {str(section) for section in B} == set(NEWS.sections)


async def test_simultaneous_writers_of_a_hundred_stories_leave_each_once(blackboard: Blackboard) -> None:
    async def scout(name: str) -> list[bool]:
        return [
            await blackboard.write(
                B.RAW_FEED, f"{name}_{n}", {"title": f"story {n}", "content": "text", "source": "wire"}
            )
            for n in range(25)
        ]

    accepted = await asyncio.gather(*(scout(f"scout_{n}") for n in range(4)))

    assert [sum(column) for column in zip(*accepted, strict=True)] == [1] * 25
    assert (await blackboard.get_section_stats(B.RAW_FEED))["by_status"] == {"pending": 25}


async def test_notes_of_agents_are_kept_and_changed_without_being_offered(blackboard: Blackboard) -> None:
    await blackboard.submit(Submission(id="mood", section=B.AGENT_STATE, payload={"mood": "good"}))

    await blackboard.update(B.AGENT_STATE, "mood", {"mood": "better"})

    read = await blackboard.read(B.AGENT_STATE, "mood")
    assert read is not None
    assert (read["mood"], read["status"]) == ("better", "recorded")
    with pytest.raises(WrongStatusError):
        await blackboard.claim(B.AGENT_STATE, "w")
