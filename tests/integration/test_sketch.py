"""Recognising near-copies: of two that come at the same moment one is laid down first, and the other is told of it."""

from __future__ import annotations

import asyncio

from given import Connect, OpenBoard, Tape, given_item, snapshot

from swarm_infrastructure.blackboard import Blackboard

STORY = "The city council voted on Tuesday evening to close the old harbour bridge for repairs until the end of next spring."
EDITED = (
    "The city council voted on Tuesday evening to close the old harbour bridge for repairs until the end of spring."
)
OTHER = "Scientists describe a new species of deep sea squid that was filmed for the first time near the Azores."


async def given_text(board: Blackboard, item_id: str, content: str) -> list[str]:
    """Put a text on the board and recognise it: the ids of those it is like."""
    await given_item(board, item_id, payload={"content": content})
    return [each.item.id for each in await board.recognise(item_id, content)]


async def test_a_near_copy_is_told_of_the_texts_before_it_most_alike_first(board: Blackboard) -> None:
    assert await given_text(board, "edited", EDITED) == []
    assert await given_text(board, "other", OTHER) == []
    assert await given_text(board, "story", STORY) == ["edited"]
    assert await given_text(board, "again", STORY) == ["story", "edited"]

    [first, *_] = await board.recognise("again", STORY)
    assert (first.item.id, first.similarity) == ("story", 1.0)
    assert [each.item.id for each in await board.recognise("again", STORY, threshold=0.99)] == ["story"]


async def test_of_two_near_copies_at_the_same_moment_exactly_one_passes_as_new(
    board: Blackboard, open_board: OpenBoard, connect: Connect
) -> None:
    other = await open_board(board.board, on=await connect(board.store.url))
    for n in range(10):
        one, two = (f"{text} Report number {n}." for text in (STORY, EDITED))
        await given_item(board, f"one_{n}", payload={"content": one})
        await given_item(board, f"two_{n}", payload={"content": two})

        alike = await asyncio.gather(board.recognise(f"one_{n}", one), other.recognise(f"two_{n}", two))

        told = [{each.item.id for each in found} & {f"one_{n}", f"two_{n}"} for found in alike]
        assert sorted(map(len, told)) == [0, 1], "one is told of the other, not both and not none"


async def test_recognising_a_text_again_gives_the_first_answer_and_changes_nothing(board: Blackboard) -> None:
    await given_text(board, "first", STORY)
    tape = Tape(board.store)
    await given_text(board, "second", EDITED)
    call = tape.last("sketch")
    await given_text(board, "third", STORY)
    before = await snapshot(board.store)

    assert await tape.again(call) == call.answer == [b"first"]
    assert await snapshot(board.store) == before


async def test_a_text_without_words_is_like_nothing_and_leaves_nothing(board: Blackboard) -> None:
    await given_item(board, "a")
    before = await snapshot(board.store)

    assert await board.recognise("a", " ... ") == []

    assert await snapshot(board.store) == before


async def test_what_very_many_texts_share_tells_nothing_and_grows_no_further(board: Blackboard) -> None:
    names = [f"i{n}" for n in range(40)]
    tape = Tape(board.store)
    for name in names:
        await given_item(board, name, payload={"content": STORY})
        await board.recognise(name, STORY)

    assert [len(call.answer) for call in tape.calls if call.function == "sketch"] == [*range(32), *[32] * 8]
    bands = await board.store.command("HVALS", board.keys.bands)
    assert {len(ids.split()) for ids in bands} == {32}


async def test_a_deleted_item_is_no_longer_told_of(board: Blackboard) -> None:
    await given_text(board, "first", STORY)
    await board.delete("jobs", "first")

    assert await given_text(board, "second", STORY) == []
