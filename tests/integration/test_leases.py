"""Leases: renewed in time, never revived, given up before they end; and what ran out is taken back."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from given import Connect, OpenBoard, Tape, clock_of, given_claim, given_item, given_items, in_time, snapshot, until

from swarm_infrastructure.blackboard import Blackboard, LeaseKeeper, job_board
from swarm_infrastructure.errors import ClaimLostError
from swarm_infrastructure.testing import ManualClock, RedisServer

WAITING = "jobs/waiting/"


async def lease_end(board: Blackboard, item_id: str, lane: str = WAITING) -> int:
    """When the lease of an item ends, on Redis' clock (ms)."""
    return int(await board.store.command("ZSCORE", board.keys.lane(lane).timed, item_id))


# --- renewing ---------------------------------------------------------------------------------------------------------


async def test_a_renewed_lease_lasts_from_now_on(board: Blackboard, clock: ManualClock) -> None:
    claimed = await given_claim(board, "a", lease_s=30)
    for _ in range(10):
        await clock.advance(s=20)
        assert await board.claims.renew([claimed.claim]) == [""]

    assert 199_000 <= await lease_end(board, "a") - claimed.claim.ends_at_ms <= 205_000
    assert await board.claim("jobs", "w2") == []
    assert await board.complete(claimed.claim) == 3, "renewing is no change of the item"


async def test_a_lease_that_ran_out_is_not_revived_even_if_nobody_took_the_item(
    board: Blackboard, clock: ManualClock
) -> None:
    claimed = await given_claim(board, "a", lease_s=30)
    await clock.advance(s=30)
    before = await snapshot(board.store)

    assert await board.claims.renew([claimed.claim]) == ["the lease ran out"]

    assert await snapshot(board.store) == before
    assert len(await board.claim("jobs", "w2")) == 1


async def test_a_claim_that_is_over_is_not_renewed(board: Blackboard, clock: ManualClock) -> None:
    taken_back, ended, stolen = [await given_claim(board, name, "w1") for name in "abc"]
    await board.complete(ended.claim)
    await clock.advance(s=31)
    await board.claims.reap([WAITING])
    await given_claim(board, "c", "w2")
    deleted = replace(stolen.claim, item_id="deleted")
    before = await snapshot(board.store)

    answers = await board.claims.renew([taken_back.claim, ended.claim, stolen.claim, deleted])

    assert answers == ["the item was taken back"] * 3 + ["the item was deleted"]
    assert await snapshot(board.store) == before


async def test_a_holder_with_an_older_token_cannot_renew_the_lease_of_its_successor(
    board: Blackboard, clock: ManualClock
) -> None:
    first = await given_claim(board, "a", "w1")
    await clock.advance(s=31)
    await given_claim(board, "a", "w1", lease_s=5)
    ends = await lease_end(board, "a")

    assert await board.claims.renew([first.claim]) == ["the item was taken back"]

    assert await lease_end(board, "a") == ends


async def test_renewing_never_shortens_a_lease(board: Blackboard) -> None:
    claimed = await given_claim(board, "a", lease_s=600)

    assert await board.claims.renew([replace(claimed.claim, lease_s=1)]) == [""]

    assert await lease_end(board, "a") == claimed.claim.ends_at_ms


async def test_a_revoked_agent_cannot_renew_and_a_paused_one_can(board: Blackboard) -> None:
    revoked, paused = await given_claim(board, "a", "w1"), await given_claim(board, "b", "w2")
    await board.store.command("HSET", board.keys.gates, "agent:w1", "revoked")
    await board.agents.pause("agent:w2")

    assert await board.claims.renew([revoked.claim, paused.claim]) == ["the agent was revoked", ""]


async def test_leases_of_different_lengths_and_lanes_are_renewed_in_one_call(open_board: OpenBoard) -> None:
    board = await open_board(job_board("jobs", "fast", "slow"))
    await given_item(board, "a", "fast")
    await given_item(board, "b", "slow", requires="law")
    a, b = await given_claim(board, "a", lease_s=1), await given_claim(board, "b", lease_s=100)
    await clock_of(board).advance(s=0.5)
    tape = Tape(board.store)

    assert await board.claims.renew([b.claim, a.claim]) == ["", ""]

    assert tape.count("renew") == 1
    assert 450 <= await lease_end(board, "a", "fast/waiting/") - a.claim.ends_at_ms <= 900
    assert 450 <= await lease_end(board, "b", "slow/waiting/law") - b.claim.ends_at_ms <= 900


async def test_six_hundred_claims_are_renewed_and_each_is_answered(board: Blackboard) -> None:
    await given_items(board, *(f"i{n}" for n in range(600)))
    claims = [each.claim for _ in range(2) for each in await board.claim("jobs", "w", most=300)]
    claims[550] = replace(claims[550], token=7)

    answers = await board.claims.renew(claims)

    assert [n for n, answer in enumerate(answers) if answer] == [550]


# --- taking back ------------------------------------------------------------------------------------------------------


async def test_a_lease_that_ran_out_is_taken_back_and_told_about(board: Blackboard, clock: ManualClock) -> None:
    claimed = await given_claim(board, "a", "w1")
    await clock.advance(s=30)

    assert await board.claims.reap([WAITING]) == 1

    item = await board.get("a")
    assert (item.status, item.holder, item.origin, item.attempts, item.crashes) == ("waiting", "", "", 1, 1)
    [error] = await board.errors("a")
    assert (error["kind"], error["agent"], error["token"]) == ("lease_ended", "w1", str(claimed.claim.token))
    event = (await board.history("a"))[-1]
    assert (event.kind, event.before, event.after, event.agent) == ("lease_ended", "jobs/active/", WAITING, "w1")


async def test_nothing_is_taken_back_before_its_time(board: Blackboard, clock: ManualClock) -> None:
    await given_claim(board, "a", lease_s=30)
    await given_item(board, "b", delay_s=30)
    await clock.advance(s=29)
    before = await snapshot(board.store)

    assert await board.claims.reap([WAITING]) == 0

    assert await snapshot(board.store) == before


async def test_a_delay_that_is_over_is_no_crash(board: Blackboard, clock: ManualClock) -> None:
    await given_item(board, "a", delay_s=30)
    await clock.advance(s=30)

    assert await board.claims.reap([WAITING]) == 0

    item = await board.get("a")
    assert (item.version, item.crashes) == (1, 0)
    assert await board.store.command("ZSCORE", board.keys.lane(WAITING).line, "a") is not None


async def test_taking_back_keeps_to_its_bound_and_goes_on_where_it_stopped(
    board: Blackboard, clock: ManualClock
) -> None:
    await given_items(board, *(f"i{n}" for n in range(70)))
    await board.claim("jobs", "w", most=70)
    await clock.advance(s=31)

    assert [await board.claims.reap([WAITING], most=30) for _ in range(4)] == [30, 30, 10, 0]


async def test_taking_back_works_over_several_lanes_within_one_bound(open_board: OpenBoard) -> None:
    board = await open_board(job_board("jobs", "one", "two"))
    for section in ("one", "two"):
        await given_items(board, *(f"{section}_{n}" for n in range(5)), section=section)
        await board.claim(section, "w", most=5)
    await clock_of(board).advance(s=31)
    lanes = ["one/waiting/", "two/waiting/"]

    assert [await board.claims.reap(lanes, most=7) for _ in range(3)] == [7, 3, 0]


async def test_a_claim_takes_back_what_ran_out_before_it_looks_for_work(board: Blackboard, clock: ManualClock) -> None:
    await given_claim(board, "a", "w1")
    await given_item(board, "b")
    await clock.advance(s=31)

    got = await board.claim("jobs", "w2", most=5)

    assert [each.item.id for each in got] == ["a", "b"], "the older one keeps its place"
    assert got[0].item.crashes == 1


# --- keeping ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def keeper(board: Blackboard) -> LeaseKeeper:
    """A keeper that does nothing by itself."""
    return LeaseKeeper(board.claims)


def aged(claim: object, lease_s: float, age_s: float) -> object:
    """The claim as it would be *age_s* seconds after it was taken."""
    return replace(claim, lease_s=lease_s, taken_at=asyncio.get_running_loop().time() - age_s)  # type: ignore[type-var]


async def test_a_keeper_renews_at_a_third_of_the_lease_and_not_before(board: Blackboard, keeper: LeaseKeeper) -> None:
    claim = (await given_claim(board, "a", lease_s=30)).claim
    keeper.keep(aged(claim, 30, 8))  # type: ignore[arg-type]
    assert await keeper.run_once() == 0

    keeper.keep(aged(claim, 30, 10))  # type: ignore[arg-type]
    assert await keeper.run_once() == 1
    assert await keeper.run_once() == 0, "it was confirmed a moment ago"


async def test_a_keeper_drops_and_reports_what_redis_refuses_to_renew(
    board: Blackboard, clock: ManualClock, keeper: LeaseKeeper
) -> None:
    lost: list[str] = []
    claim = (await given_claim(board, "a")).claim
    lease = keeper.keep(aged(claim, 30, 10), lost.append)  # type: ignore[arg-type]
    await clock.advance(s=31)

    assert await keeper.run_once() == 0

    assert lost == ["the lease ran out"] == [lease.lost]
    assert (keeper.kept, keeper.find("a", claim.token)) == (0, None)


async def test_a_keeper_gives_up_at_two_thirds_without_a_confirmation_and_tells_once(
    board: Blackboard, keeper: LeaseKeeper
) -> None:
    lost: list[str] = []
    claim = (await given_claim(board, "a")).claim
    keeper.keep(aged(claim, 30, 20), lost.append)  # type: ignore[arg-type]

    assert await keeper.run_once() == 0
    assert await keeper.run_once() == 0

    assert lost == ["it could not be renewed for two thirds of its lease"]


async def test_a_lease_that_ends_while_it_is_being_renewed_is_not_reported_as_lost(
    board: Blackboard, keeper: LeaseKeeper
) -> None:
    lost: list[str] = []
    claim = (await given_claim(board, "a")).claim
    keeper.keep(aged(claim, 30, 10), lost.append)  # type: ignore[arg-type]
    await board.complete(claim)

    renewing = asyncio.create_task(keeper.run_once())
    await asyncio.sleep(0)
    keeper.drop(claim)
    await renewing

    assert lost == []


async def test_a_holder_whose_callback_raises_does_not_stop_the_keeper(board: Blackboard, keeper: LeaseKeeper) -> None:
    def broken(_why: str) -> None:
        raise RuntimeError("the holder's own fault")

    lost: list[str] = []
    first, second, third = [(await given_claim(board, name)).claim for name in "abc"]
    keeper.keep(aged(first, 30, 25), broken)  # type: ignore[arg-type]
    keeper.keep(aged(second, 30, 25), lost.append)  # type: ignore[arg-type]
    keeper.keep(aged(third, 30, 12), lost.append)  # type: ignore[arg-type]

    assert await keeper.run_once() == 1

    assert len(lost) == 1


async def test_a_keeper_knows_the_claims_of_an_agent(board: Blackboard, keeper: LeaseKeeper) -> None:
    a, b = (await given_claim(board, "a", "w1")).claim, (await given_claim(board, "b", "w2")).claim
    for claim in (a, b):
        keeper.keep(claim)

    assert keeper.held_by("w1") == [a]
    assert keeper.find("b", b.token) == b
    assert keeper.find("b", a.token - 1) is None


async def test_a_kept_claim_outlives_its_lease_many_times(open_board: OpenBoard) -> None:
    board = await open_board(job_board("jobs", lease_s=0.4))
    claimed = await given_claim(board, "a")
    lease = board.leases.keep(claimed.claim)

    async def has_outlived_it() -> bool:
        assert await board.claim("jobs", "thief") == []
        return await lease_end(board, "a") > claimed.claim.ends_at_ms + 800

    await until(has_outlived_it)

    assert not lease.lost
    assert await board.complete(claimed.claim) == 3


async def test_a_short_lease_is_kept_although_the_keeper_was_resting_for_a_long_one(board: Blackboard) -> None:
    board.leases.keep((await given_claim(board, "long", lease_s=600)).claim)
    await asyncio.sleep(0)  # the keeper goes to sleep for as long as that allows
    short = await given_claim(board, "short", lease_s=0.3)
    lease = board.leases.keep(short.claim)

    async def has_been_renewed() -> bool:
        return await lease_end(board, "short") > short.claim.ends_at_ms + 300

    await until(has_been_renewed)

    assert not lease.lost


async def test_a_completed_claim_is_kept_no_longer(board: Blackboard) -> None:
    claims = [(await given_claim(board, name)).claim for name in "abc"]
    for claim in claims:
        board.leases.keep(claim)

    await board.complete(claims[0])
    await board.fail(claims[1], "no luck")
    await board.hand_back(claims[2])

    assert board.leases.kept == 0


async def test_two_boards_of_one_process_can_renew_at_the_same_moment(board: Blackboard, open_board: OpenBoard) -> None:
    other = await open_board(job_board("other"))
    claims = [(await given_claim(each, "a")).claim for each in (board, other)]

    answers = await asyncio.gather(
        *(each.claims.renew([claim]) for each, claim in zip((board, other), claims, strict=True))
    )

    assert answers == [[""], [""]]


async def test_a_holder_is_told_before_its_lease_ends_when_redis_goes_silent(
    connect: Connect, request: pytest.FixtureRequest
) -> None:
    with RedisServer(request.config.getoption("--redis-kind")) as server:
        store = await connect(server.url, timeout_s=0.2, retry_s=0.1)
        async with Blackboard(store, job_board("jobs", lease_s=0.6)) as board:
            claimed = await given_claim(board, "a")
            told: asyncio.Future[float] = asyncio.get_running_loop().create_future()
            board.leases.keep(claimed.claim, lambda _why: told.set_result(asyncio.get_running_loop().time()))

            server.freeze()
            told_at = await in_time(told)
            server.thaw()

            assert 0.3 <= told_at - claimed.claim.taken_at < 0.6


async def test_a_store_that_is_away_for_a_moment_costs_no_lease(
    connect: Connect, request: pytest.FixtureRequest
) -> None:
    with RedisServer(
        request.config.getoption("--redis-kind"), persist=True, options={"appendfsync": "always"}
    ) as server:
        store = await connect(server.url)
        async with Blackboard(store, job_board("jobs", lease_s=3)) as board:
            claimed = await given_claim(board, "a")
            lease = board.leases.keep(claimed.claim)

            server.kill()
            server.restart()

            async def has_been_renewed() -> bool:
                return await lease_end(board, "a") > claimed.claim.ends_at_ms

            await until(has_been_renewed)
            assert not lease.lost
            assert await board.complete(claimed.claim) == 3


async def test_a_zombie_that_wakes_up_after_its_lease_writes_nothing(board: Blackboard, clock: ManualClock) -> None:
    zombie = await given_claim(board, "a", "w1")
    await clock.advance(s=31)
    successor = await given_claim(board, "a", "w2")
    await board.complete(successor.claim, patch={"by": "w2"})

    with pytest.raises(ClaimLostError):
        await board.complete(zombie.claim, patch={"by": "w1"})
    with pytest.raises(ClaimLostError):
        await board.fail(zombie.claim, "too late")

    assert (await board.get("a")).payload["by"] == "w2"
    assert len(await board.errors("a")) == 1
