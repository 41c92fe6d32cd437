"""Reading the board: what the queries say equals a count by hand, and none of them scans."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from given import OpenBoard, clock_of, given_claim, given_item, given_items

from swarm_infrastructure.blackboard import Blackboard, Item, Submission, job_board
from swarm_infrastructure.errors import InvalidInputError, ItemNotFoundError, UnknownSectionError

TAGS = ("", "script", "edit", "law")


async def by_hand(board: Blackboard) -> list[Item]:
    """Every item, read from its record: slow, and so simple that it is right."""
    names = [name.decode() for name in await board.store.command("HKEYS", board.keys.items)]
    return [item for item in await board.find_many(names) if item]


async def calls_of(board: Blackboard, *commands: str) -> dict[str, int]:
    """How often Redis has run these commands, inside of functions too."""
    stats = {}
    for name, row in (await board.store.command("INFO", "commandstats")).items():
        stats[name.removeprefix("cmdstat_")] = int(row["calls"])
    return {command: sum(n for name, n in stats.items() if name == command) for command in commands}


# --- ten thousand items -----------------------------------------------------------------------------------------------


async def test_queries_over_ten_thousand_items_equal_a_count_by_hand_and_scan_nothing(open_board: OpenBoard) -> None:
    board, dice = await open_board(job_board("jobs", "first", "second", "third", lease_s=3600)), Random(7)
    for start in range(0, 10_000, 500):
        await board.submit(
            *(
                Submission(
                    id=f"i{n}",
                    section=dice.choice(["first", "second", "third"]),
                    status=dice.choice(["waiting", "waiting", "waiting", "done"]),
                    requires=dice.choice(TAGS),
                    priority=dice.randrange(10),
                    delay_s=dice.choice([0, 0, 0, 0, 3600]),
                    payload={"n": n},
                )
                for n in range(start, start + 500)
            )
        )
    for n in range(6):
        claimed = await board.claim(dice.choice(["first", "second"]), f"w{n % 3}", most=300, capabilities=TAGS[1:])
        for each in claimed[::5]:
            await board.complete(each.claim)
        for each in claimed[1::5]:
            await board.fail(each.claim, "x", give_up=n % 2 == 0, retry_in_s=3600)
    items = await by_hand(board)
    scans = "keys", "scan", "hscan", "sscan", "zscan", "hkeys", "smembers"
    before = await calls_of(board, *scans)

    stats = await board.get_all_stats()
    agents = {agent: await board.query_by_agent(agent) for agent in ("w0", "w1", "w2", "nobody")}
    lists: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for section in ("first", "second", "third"):
        for status in ("waiting", "active", "done", "quarantined"):
            lists[section, status] = await board.query_by_status(section, status, limit=10_000)
        assert sorted(row["id"] for row in await board.read_all(section)) == sorted(
            item.id for item in items if item.section == section
        )
    top = await board.query_by_status("third", "waiting", limit=7)

    assert await calls_of(board, *scans) == before, "no call that looks at more than it returns"
    for section in ("first", "second", "third"):
        counted = Counter(item.status for item in items if item.section == section)
        assert stats[section] == {"section": section, "total": counted.total(), "by_status": dict(counted)}
        assert await board.get_section_stats(section) == stats[section]
    for agent, held in agents.items():
        assert sorted(row["id"] for row in held) == sorted(item.id for item in items if item.holder == agent)
    for (section, status), rows in lists.items():
        there = [item for item in items if (item.section, item.status) == (section, status)]
        there.sort(key=lambda item: (item.priority, item.seq))
        assert [row["id"] for row in rows] == [item.id for item in there]
    assert top == lists["third", "waiting"][:7]
    assert max(len(rows) for rows in lists.values()) > 1500
    assert min(len(held) for agent, held in agents.items() if agent != "nobody") > 100


# --- one thing at a time ----------------------------------------------------------------------------------------------


async def test_a_limit_takes_the_first_over_all_capabilities_and_all_who_wait(board: Blackboard) -> None:
    await given_item(board, "low", priority=9)
    await given_item(board, "delayed", priority=1, delay_s=3600)
    await given_item(board, "tagged", priority=0, requires="script")
    await given_item(board, "high", priority=1)

    found = [[row["id"] for row in await board.query_by_status("jobs", "waiting", limit=n)] for n in (1, 2, 3, 100)]

    assert found == [
        ["tagged"],
        ["tagged", "delayed"],
        ["tagged", "delayed", "high"],
        ["tagged", "delayed", "high", "low"],
    ]


async def test_the_limit_is_a_hundred_unless_told_otherwise(board: Blackboard) -> None:
    await given_items(board, *(f"i{n}" for n in range(120)))

    assert len(await board.query_by_status("jobs", "waiting")) == 100
    assert len(await board.query_by_status("jobs", "waiting", limit=500)) == 120
    with pytest.raises(InvalidInputError):
        await board.query_by_status("jobs", "waiting", limit=0)


async def test_more_capabilities_than_one_call_reads_are_all_listed(board: Blackboard) -> None:
    await board.submit(
        *(Submission(id=f"i{n}", section="jobs", payload={}, requires=f"tag{n}", priority=n % 10) for n in range(700))
    )

    rows = await board.query_by_status("jobs", "waiting", limit=1000)
    first = await board.query_by_status("jobs", "waiting", limit=3)

    assert sorted(int(row["id"][1:]) for row in rows) == list(range(700))
    assert [row["id"] for row in first] == ["i0", "i10", "i20"]


async def test_thousands_that_wait_for_their_time_are_all_listed(board: Blackboard) -> None:
    for start in range(0, 6000, 500):
        await given_items(board, *(f"i{n}" for n in range(start, start + 500)), delay_s=3600)

    assert len(await board.query_by_status("jobs", "waiting", limit=10_000)) == 6000
    assert len(await board.read_all("jobs", "waiting")) == 6000


async def test_a_status_lists_what_is_claimed_delayed_and_ready_alike(blackboard: Blackboard) -> None:
    await given_items(blackboard, "ready", "held", section="debate_queue")
    await given_item(blackboard, "later", "debate_queue", delay_s=60)
    await given_claim(blackboard, "held", "w1")  # debating looks the same waiting and claimed

    assert {row["id"] for row in await blackboard.query_by_status("debate_queue", "debating")} == {
        "ready",
        "held",
        "later",
    }
    assert [row["id"] for row in await blackboard.query_by_agent("w1")] == ["held"]
    assert await blackboard.query_by_agent("w1", "raw_feed") == []
    assert [row["id"] for row in await blackboard.query_by_agent("w1", "debate_queue")] == ["held"]


async def test_a_row_has_the_payload_and_where_the_item_stands(board: Blackboard) -> None:
    await given_item(board, "a", payload={"title": "T", "id": "not this", "status": "nor this"})
    await board.complete((await given_claim(board, "a")).claim, result={"score": 1})

    [row] = await board.query_by_status("jobs", "done")

    item = await board.get("a")
    assert row == {
        "title": "T",
        "id": "a",
        "status": "done",
        "_bb_section": "jobs",
        "_bb_version": 3,
        "_bb_updated_at": item.changed_ms / 1000,
        "_bb_result": {"score": 1},
    }
    assert await board.read("jobs", "a") == row
    assert await board.read_all("jobs") == [row]


async def test_reading_what_is_not_there_gives_nothing(board: Blackboard, blackboard: Blackboard) -> None:
    await given_item(blackboard, "a", "raw_feed")

    assert await blackboard.read("archive", "a") is None
    assert await blackboard.read("raw_feed", "b") is None
    assert await board.find("a") is None
    assert await blackboard.find_many(["b", "a", "c"]) == [None, await blackboard.get("a"), None]
    assert await board.read_all("jobs") == []
    assert await board.query_by_agent("nobody") == []
    with pytest.raises(ItemNotFoundError, match="'a'"):
        await board.get("a")


async def test_names_that_the_board_does_not_have_are_refused(board: Blackboard) -> None:
    for call in (
        board.read("nowhere", "a"), board.read_all("nowhere"), board.query_by_status("nowhere", "waiting"),
        board.get_section_stats("nowhere"),
    ):  # fmt: skip
        with pytest.raises(UnknownSectionError):
            await call
    for call in (board.query_by_status("jobs", "nothing"), board.read_all("jobs", "nothing"), board.find("a b")):
        with pytest.raises(InvalidInputError):
            await call
    with pytest.raises(InvalidInputError):
        await board.query_by_agent("a b")


async def test_stats_follow_every_kind_of_change(open_board: OpenBoard) -> None:
    board = await open_board(job_board("jobs", max_crashes=1))

    async def by_status() -> dict[str, int]:
        return dict((await board.get_section_stats("jobs"))["by_status"])

    await given_items(board, *"abcd")
    assert await by_status() == {"waiting": 4}
    a, b, _ = await board.claim("jobs", "w", most=3)
    assert await by_status() == {"waiting": 1, "active": 3}
    await board.complete(a.claim)
    await board.fail(b.claim, "x", retry_in_s=3600)
    assert await by_status() == {"waiting": 2, "active": 1, "done": 1}
    await clock_of(board).advance(s=31)
    await board.claims.reap(["jobs/waiting/"])
    assert await by_status() == {"waiting": 2, "quarantined": 1, "done": 1}
    await board.release("c")
    await board.delete("jobs", "a")
    assert await by_status() == {"waiting": 3}
    for item_id in "bcd":
        await board.delete("jobs", item_id)
    assert await board.get_section_stats("jobs") == {"section": "jobs", "total": 0, "by_status": {}}
    assert await board.store.command("EXISTS", board.keys.counts) == 0


@pytest.mark.unaudited
async def test_a_torn_item_hides_none_of_the_others(board: Blackboard) -> None:
    await given_items(board, *(f"i{n}" for n in range(1200)))
    await board.store.command("HSET", board.keys.items, "i0", "torn")
    await board.store.command("HSET", board.keys.payloads, "i500", b"{torn")
    await board.store.command("HDEL", board.keys.items, "i1")
    await given_claim(board, "i2", "w1")
    await given_claim(board, "i3", "w1")
    await board.store.command("HSET", board.keys.payloads, "i2", b"{torn")

    rows = await board.query_by_status("jobs", "waiting", limit=5000)

    assert len(rows) == 1200 - 5
    assert len(await board.read_all("jobs", "waiting")) == 1200 - 5
    assert [row["id"] for row in await board.query_by_agent("w1")] == ["i3"]
    with pytest.raises(InvalidInputError, match="swarm audit"):
        await board.find("i500")
    with pytest.raises(InvalidInputError, match="swarm audit"):
        await board.find("i0")


# --- likeness ---------------------------------------------------------------------------------------------------------

STORY = "The city council voted on Tuesday evening to close the old harbour bridge for repairs until the end of next spring."
EDITED = (
    "The city council voted on Tuesday evening to close the old harbour bridge for repairs until the end of spring."
)
OTHER = "Scientists describe a new species of deep sea squid that was filmed for the first time near the Azores."


async def test_near_copies_are_found_most_alike_first_and_others_are_not(blackboard: Blackboard) -> None:
    for item_id, content in (("edited", EDITED), ("other", OTHER), ("same", STORY)):
        await given_item(blackboard, item_id, "raw_feed", payload={"title": "", "content": content})
    await given_item(blackboard, "elsewhere", "archive", payload={"content": STORY})

    found = await blackboard.find_similar("raw_feed", STORY)

    assert [row["id"] for row in found] == ["same", "edited"]
    assert found[0]["similarity"] == 1.0
    assert 0.85 <= found[1]["similarity"] < 1.0
    assert [row["id"] for row in await blackboard.find_similar("raw_feed", STORY, threshold=0.99)] == ["same"]
    with pytest.raises(InvalidInputError):
        await blackboard.find_similar("raw_feed", STORY, threshold=1.1)
