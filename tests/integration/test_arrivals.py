"""Waiting until an item has come somewhere."""

from __future__ import annotations

import asyncio

import pytest
from given import Connect, OpenBoard, Tape, a_request, given_claim, given_item, given_items, held_call, in_time, until

from swarm_infrastructure.blackboard import Blackboard, Item, job_board
from swarm_infrastructure.errors import InvalidInputError, ItemNotFoundError
from swarm_infrastructure.testing import RedisServer


def arrival(board: Blackboard, item_id: str, *statuses: str) -> asyncio.Task[Item]:
    return asyncio.create_task(board.wait_for(item_id, *statuses))


async def listening(board: Blackboard) -> None:
    async def blocked() -> bool:
        return int((await board.store.info())["blocked_clients"]) >= 1

    await until(blocked)


async def test_who_waits_gets_the_item_with_its_result_when_it_is_done(
    board: Blackboard, open_board: OpenBoard, connect: Connect
) -> None:
    elsewhere = await open_board(board.board, on=await connect(board.store.url))
    claim = (await given_claim(board)).claim
    waiting = arrival(elsewhere, "a")
    await listening(board)

    await board.complete(claim, result={"n": 1})

    item = await in_time(waiting, 2)
    assert (item.status, item.result) == ("done", {"n": 1})


async def test_what_has_come_already_is_given_at_once(board: Blackboard) -> None:
    await board.complete((await given_claim(board)).claim, result=7)

    assert (await in_time(board.wait_for("a"), 2)).result == 7
    assert (await in_time(board.wait_for("a", "active", "done"), 2)).status == "done"


async def test_quarantine_is_an_end_too(board: Blackboard) -> None:
    claim = (await given_claim(board)).claim
    waiting = arrival(board, "a")
    await listening(board)

    await board.fail(claim, "no use", give_up=True)

    assert (await in_time(waiting, 2)).status == "quarantined"


async def test_a_status_on_the_way_can_be_waited_for(board: Blackboard) -> None:
    await given_item(board)
    waiting = arrival(board, "a", "active")
    await listening(board)

    await given_claim(board, "b", "w")  # of another item
    assert not waiting.done()
    await board.claim("jobs", "w")

    assert (await in_time(waiting, 2)).holder == "w"


async def test_many_who_wait_share_one_reader(board: Blackboard) -> None:
    names = [f"i{n}" for n in range(100)]
    await given_items(board, *names)
    tape = Tape(board.store)
    waiting = [arrival(board, name) for name in names]
    await listening(board)
    before = int((await board.store.info())["blocked_clients"])

    claimed = []
    while len(claimed) < 100:
        claimed += await board.claims.wait(a_request(board, most=100))
    await asyncio.gather(*(board.complete(each.claim) for each in claimed))

    items = await in_time(asyncio.gather(*waiting), 5)
    assert before == 1
    assert {item.status for item in items} == {"done"}
    assert tape.count("read_arrived") <= 4  # and one look for all of a moment


async def test_the_item_comes_with_the_news(board: Blackboard) -> None:
    claim = (await given_claim(board)).claim
    waiting = arrival(board, "a")
    await listening(board)
    tape = Tape(board.store)

    await board.complete(claim, result=7)

    assert (await in_time(waiting, 2)).result == 7
    assert [call.function for call in tape.calls] == ["end_claims"]


async def test_an_item_that_passes_by_while_others_are_read_is_not_missed(board: Blackboard) -> None:
    names = [f"i{n}" for n in range(20)]  # more than are read along with the log
    await given_items(board, *names)
    waiting = [arrival(board, name, "active") for name in names]
    await listening(board)

    claimed = await board.claims.wait(a_request(board, most=20))
    await asyncio.gather(*(board.complete(each.claim) for each in claimed))

    items = await in_time(asyncio.gather(*waiting), 5)
    assert {item.status for item in items} <= {"active", "done"}


async def test_two_wait_for_one_item_in_different_places(board: Blackboard) -> None:
    await given_item(board)
    on_the_way, over = arrival(board, "a", "active"), arrival(board, "a")
    await listening(board)

    claim = (await board.claims.wait(a_request(board)))[0].claim
    assert (await in_time(on_the_way, 2)).status == "active"
    assert not over.done()
    await board.complete(claim)

    assert (await in_time(over, 2)).status == "done"


async def test_who_looked_before_another_wait_began_to_read_hears_of_what_happened_between(board: Blackboard) -> None:
    claim = (await given_claim(board)).claim
    await given_item(board, "b")
    async with held_call(board.store, "read_arrived") as (looked, let):
        waiting = arrival(board, "a")
        await looked.wait()  # it saw the item active
        await board.complete(claim)
        other = arrival(board, "b")
        await listening(board)  # which reads the log from behind the completion
        let.set()

        assert (await in_time(waiting, 2)).status == "done"
    other.cancel()


async def test_who_waits_as_the_last_wait_ends_hears_of_his_item(board: Blackboard) -> None:
    first, second = (await given_claim(board)).claim, (await given_claim(board, "b")).claim
    waiting = arrival(board, "a")
    await listening(board)
    await board.complete(first)
    await in_time(waiting, 2)

    waiting = arrival(board, "b")
    await listening(board)
    await board.complete(second)

    assert (await in_time(waiting, 2)).status == "done"


async def test_what_happens_while_he_looks_is_not_missed(board: Blackboard) -> None:
    await given_item(board)
    waiting = arrival(board, "a", "active")
    await listening(board)
    async with held_call(board.store, "read_arrived") as (looked, let):
        board._arrivals._look()  # as after Redis was away
        await looked.wait()  # he saw the item waiting
        claim = (await board.claims.wait(a_request(board)))[0].claim
        await board.hand_back(claim)
        let.set()

        assert (await in_time(waiting, 2)).id == "a"


async def test_what_happened_before_somebody_waits_is_no_news_to_him(board: Blackboard) -> None:
    claims = [(await given_claim(board, name)).claim for name in ("first", "older", "again")]
    waiting = arrival(board, "first")
    await listening(board)
    await board.complete(claims[0])
    await in_time(waiting, 2)  # from here the log is read on
    await board.fail(claims[2], "no use", give_up=True)
    await board.release("again")

    older, again = arrival(board, "older"), arrival(board, "again")
    await listening(board)
    await board.complete(claims[1])
    await in_time(older, 2)

    assert not again.done()  # it was quarantined, which is over
    await board.complete((await board.claims.wait(a_request(board)))[0].claim)
    assert (await in_time(again, 2)).status == "done"


async def test_nobody_reads_when_nobody_waits(board: Blackboard) -> None:
    claim = (await given_claim(board)).claim
    waiting = arrival(board, "a")
    await listening(board)
    await board.complete(claim)
    await in_time(waiting, 2)

    async def at_rest() -> bool:
        return int((await board.store.info())["blocked_clients"]) == 0

    await until(at_rest)


async def test_an_item_that_is_not_there_or_goes_away_is_an_error(board: Blackboard) -> None:
    with pytest.raises(ItemNotFoundError):
        await in_time(board.wait_for("nobody"), 2)
    await given_item(board)
    waiting = arrival(board, "a")
    await listening(board)

    await board.delete("jobs", "a")

    with pytest.raises(ItemNotFoundError):
        await in_time(waiting, 2)


@pytest.mark.unaudited
async def test_an_item_that_cannot_be_read_is_an_error_to_him_alone_who_waits_for_it(board: Blackboard) -> None:
    await given_items(board, "sound", "torn")
    await board.store.command("HSET", board.keys.items, "torn", "no record")

    torn, missing, sound = (arrival(board, name, "waiting") for name in ("torn", "missing", "sound"))

    with pytest.raises(InvalidInputError, match="torn"):
        await in_time(torn, 2)
    with pytest.raises(ItemNotFoundError):
        await in_time(missing, 2)
    assert (await in_time(sound, 2)).status == "waiting"


async def test_a_status_that_the_board_does_not_have_is_refused(board: Blackboard) -> None:
    with pytest.raises(InvalidInputError, match="finished"):
        await board.wait_for("a", "finished")


async def test_who_waits_outlives_a_restart_of_redis(connect: Connect, request: pytest.FixtureRequest) -> None:
    kind = request.config.getoption("--redis-kind")
    with RedisServer(kind, persist=True, options={"appendfsync": "always"}) as server:
        store = await connect(server.url)
        async with Blackboard(store, job_board("jobs")) as board:
            claim = (await given_claim(board)).claim
            waiting = arrival(board, "a")
            await listening(board)
            server.kill()
            server.restart()

            await board.complete(claim)

            assert (await in_time(waiting, 10)).status == "done"


async def test_nothing_is_read_any_more_when_the_board_is_closed(connect: Connect, board: Blackboard) -> None:
    store = await connect(board.store.url)
    await given_item(board)
    async with Blackboard(store, board.board, namespace="test") as closing:
        waiting = arrival(closing, "a")
        await listening(board)
        tape = Tape(store)
    await asyncio.wait({waiting}, timeout=2)

    assert waiting.cancelled()
    assert tape.count("read_arrived") == 0


async def test_who_looks_as_the_board_is_closed_is_cancelled_and_reads_nothing(
    connect: Connect, board: Blackboard
) -> None:
    await given_items(board, "a", "b")
    store = await connect(board.store.url)
    async with Blackboard(store, board.board, namespace="test") as closing:
        async with held_call(store, "read_arrived") as (looked, _):
            waiting = [arrival(closing, name) for name in ("a", "b")]
            await looked.wait()
            await closing._arrivals.close()
            await asyncio.wait(waiting, timeout=2)
            assert all(each.cancelled() for each in waiting)

    assert int((await board.store.info())["blocked_clients"]) == 0
