"""The log: one event for each change, in the same breath; an item's history walks back, the whole log replays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest
from given import OpenBoard, clock_of, given_claim, given_item, given_items, in_time

from swarm_infrastructure.blackboard import Blackboard, ClaimRequest, Event, job_board
from swarm_infrastructure.errors import InvalidInputError, RefusedError
from swarm_infrastructure.testing import ManualClock


async def whole_log(board: Blackboard) -> list[Event]:
    return [event async for event in board.events.read()]


async def test_an_items_history_tells_its_whole_life(board: Blackboard, clock: ManualClock) -> None:
    await given_item(board, "a")
    first = await given_claim(board, "a", "w1")
    await clock.advance(s=31)
    second = await given_claim(board, "a", "w2")
    await board.fail(second.claim, "no luck")
    third = await given_claim(board, "a", "w3")
    await board.hand_back(third.claim, reason="stopping")
    await board.update("jobs", "a", {"x": 1}, agent="ann")
    fourth = await given_claim(board, "a", "w4")
    await board.complete(fourth.claim, reason="fine")

    history = await board.history("a")

    waiting, active, done = "jobs/waiting/", "jobs/active/", "jobs/done/"
    assert [(event.kind, event.before, event.after, event.agent) for event in history] == [
        ("submitted", "", waiting, ""),
        ("claimed", waiting, active, "w1"),
        ("lease_ended", active, waiting, "w1"),
        ("claimed", waiting, active, "w2"),
        ("failed", active, waiting, "w2"),
        ("claimed", waiting, active, "w3"),
        ("handed_back", active, waiting, "w3"),
        ("updated", waiting, waiting, "ann"),
        ("claimed", waiting, active, "w4"),
        ("completed", active, done, "w4"),
    ]
    assert [event.version for event in history] == list(range(1, 11))
    claims = [first, first, second, second, third, third, fourth, fourth]
    assert [event.token for event in history if event.agent.startswith("w")] == [each.claim.token for each in claims]
    assert [event.previous for event in history[1:]] == [event.id for event in history[:-1]]
    assert [event.at_ms for event in history] == sorted(event.at_ms for event in history)
    assert history[-1].as_dict() == {
        "kind": "completed", "item": "a", "version": 10, "from": active, "to": done, "by": "w4",
        "token": fourth.claim.token, "reason": "fine", "trace": "", "at_ms": history[-1].at_ms,
    }  # fmt: skip


async def test_an_item_remembers_when_it_was_submitted(board: Blackboard) -> None:
    item = submitted = await given_item(board, "a")

    while item.changed_ms == submitted.changed_ms:  # until Redis' clock has moved on
        await board.update("jobs", "a", {"x": 1})
        item = await board.get("a")
    claimed = await given_claim(board, "a")

    first, *_, last = await board.history("a")
    assert item.created_ms == claimed.item.created_ms == first.at_ms
    assert claimed.item.changed_ms == last.at_ms > first.at_ms


async def test_what_the_items_of_an_entry_have_in_common_is_said_once(board: Blackboard) -> None:
    await given_items(board, *"abc")
    await given_items(board, *"de")
    await board.update("jobs", "e", {"x": 1})
    lanes = board.claims.lanes("jobs")
    await board.claims.claim(
        *(
            ClaimRequest(agent_id=agent, role="", lanes=lanes, most=most, lease_s=30)
            for agent, most in (("w1", 3), ("w2", 2))
        )
    )

    [(entry, fields)] = await board.store.command("XREVRANGE", board.keys.events, "+", "-", "COUNT", 1)
    claimed = [event for event in await whole_log(board) if event.id == entry.decode()]
    first, second, third = [(await board.history(each))[-1].previous for each in "ade"]
    token = claimed[0].token

    assert fields[b"items"].decode() == f"a 2 {first},c,e 3 {third},b 2 {first} w2 {token},d 2 {second} w2 {token}"
    assert [(event.item, event.version, event.previous, event.agent) for event in claimed] == [
        ("a", 2, first, "w1"), ("c", 2, first, "w1"), ("e", 3, third, "w1"), ("b", 2, first, "w2"), ("d", 2, second, "w2"),
    ]  # fmt: skip


async def test_items_that_change_alike_share_an_entry_and_each_has_its_own_history(board: Blackboard) -> None:
    await given_items(board, *"abc")
    claimed = await board.claim("jobs", "w1", most=3)
    await asyncio.gather(*(board.complete(each.claim) for each in claimed))

    assert await board.store.command("XLEN", board.keys.events) == 3
    for item_id in "abc":
        history = await board.history(item_id)
        assert [event.kind for event in history] == ["submitted", "claimed", "completed"]
        assert {event.item for event in history} == {item_id}


async def test_agents_that_claim_in_one_call_are_told_apart_in_the_log(board: Blackboard) -> None:
    await given_items(board, *"abcd")
    lanes = board.claims.lanes("jobs")
    hands = await board.claims.claim(*(ClaimRequest(agent_id=f"w{n}", role="", lanes=lanes, most=2) for n in range(3)))
    await asyncio.gather(
        *(board.fail(each.claim, "same") for hand in hands for each in hand if not isinstance(hand, str))
    )

    for item_id, agent in zip("abcd", ["w0", "w1", "w2", "w0"], strict=True):
        _, claimed, failed = await board.history(item_id)
        assert (claimed.agent, failed.agent) == (agent, agent)
        assert claimed.token == failed.token == (await board.get(item_id)).token


async def test_refused_changes_leave_no_event(board: Blackboard, clock: ManualClock) -> None:
    claimed = await given_claim(board, "a")
    entries = await board.store.command("XLEN", board.keys.events)
    await clock.advance(s=31)

    for refused in (
        board.complete(claimed.claim), board.fail(claimed.claim, "x"), board.update("jobs", "a", {}),
        board.move("a", "jobs", "jobs", status="done"), board.delete("jobs", "a"), board.release("a"),
    ):  # fmt: skip
        with pytest.raises(RefusedError):
            await refused

    assert await board.store.command("XLEN", board.keys.events) == entries


async def test_the_log_replays_to_the_state_that_redis_holds(open_board: OpenBoard) -> None:
    board, dice = await open_board(job_board("jobs", "jobs", "more", max_attempts=3, max_crashes=2)), Random(3)
    names = [f"i{n}" for n in range(40)]
    await given_items(board, *names[:20])
    await given_items(board, *names[20:], section="more")
    for _ in range(60):
        section = dice.choice(["jobs", "more"])
        for each in await board.claim(section, f"w{dice.randrange(4)}", most=dice.randrange(1, 6)):
            match dice.randrange(6):
                case 0:
                    await board.complete(each.claim)
                case 1:
                    await board.complete(each.claim, f"{dice.choice(['jobs', 'more'])}/waiting")
                case 2:
                    await board.fail(each.claim, "x", retry_in_s=dice.choice([0, 10]))
                case 3:
                    await board.hand_back(each.claim)
                case 4:
                    await board.fail(each.claim, "x", give_up=True)
                case _:
                    pass  # its holder crashes
        if dice.random() < 0.3:
            await clock_of(board).advance(s=31)
        name = dice.choice(names)
        try:
            item = await board.get(name)
            await dice.choice([board.retry, board.release])(name)
            await board.update(item.section, name, {"x": 1})
        except RefusedError:
            pass

    lanes: dict[str, str] = {}
    versions: dict[str, int] = {}
    holders: dict[str, str] = {}
    for event in await whole_log(board):
        assert event.before == lanes.get(event.item, "")
        assert event.version == versions.get(event.item, 0) + 1
        lanes[event.item], versions[event.item] = event.after, event.version
        if event.kind == "claimed":
            assert not holders.get(event.item)
            holders[event.item] = event.agent
        elif holders.get(event.item):
            assert event.agent == holders.pop(event.item)

    items = [item for item in await board.find_many(names) if item]
    assert {item.id: (item.lane, item.version, item.holder) for item in items} == {
        name: (lanes[name], versions[name], holders.get(name, "")) for name in names
    }
    assert {kind.kind for kind in await whole_log(board)} >= {
        "quarantined",
        "released",
        "retried",
        "updated",
        "lease_ended",
    }


async def test_the_log_is_read_in_pages_and_from_any_point(board: Blackboard) -> None:
    for n in range(7):
        await given_item(board, f"i{n}")

    everything = await whole_log(board)
    paged = [event async for event in board.events.read(page=2)]
    later = [event async for event in board.events.read(f"({everything[3].id}")]
    middle = [event async for event in board.events.read(everything[2].id, everything[4].id)]

    assert [event.item for event in everything] == [f"i{n}" for n in range(7)]
    assert paged == everything
    assert (later, middle) == (everything[4:], everything[2:5])
    assert await board.events.last_id() == everything[-1].id


async def test_an_empty_log_has_no_events(board: Blackboard) -> None:
    assert await whole_log(board) == []
    assert await board.events.last_id() == "0-0"


@pytest.mark.unaudited
async def test_a_forged_entry_is_named_when_it_is_read(board: Blackboard) -> None:
    await board.store.command("XADD", board.keys.events, "*", "kind", "odd", "items", "a b c d e f")

    with pytest.raises(InvalidInputError, match="an event of this board"):
        await whole_log(board)


async def test_whoever_follows_the_log_sees_what_happens_from_then_on(board: Blackboard) -> None:
    await given_item(board, "before")
    original, looked = board.events.last_id, asyncio.Event()

    async def last_id() -> str:
        newest = await original()
        looked.set()
        return newest

    board.events.last_id = last_id  # type: ignore[method-assign]
    seen: list[Event] = []

    async def follow() -> None:
        async for event in board.follow():
            seen.append(event)
            if len(seen) == 2:
                return

    following = asyncio.create_task(follow())
    await in_time(looked.wait())
    await given_item(board, "a")
    await given_claim(board, "a", "w1")
    await in_time(following)

    assert [(event.kind, event.item) for event in seen] == [("submitted", "a"), ("claimed", "a")]


async def test_whoever_follows_the_log_from_a_point_misses_nothing_since(board: Blackboard) -> None:
    await given_items(board, "a", "b")
    await given_item(board, "c")

    seen = [event.item async for event, _ in _zip(board.follow("0-0"), range(3))]

    assert seen == ["a", "b", "c"]


async def _zip(events: AsyncIterator[Event], numbers: range) -> AsyncIterator[tuple[Event, int]]:
    for number in numbers:
        yield await in_time(anext(events)), number
