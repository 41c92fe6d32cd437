"""Circuit breakers: one state for the whole fleet, on Redis' clock."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from given import Connect, Tape, snapshot

from swarm_infrastructure.blackboard import Blackboard
from swarm_infrastructure.errors import CircuitOpenError, InvalidInputError, RefusedError
from swarm_infrastructure.failure_recovery import Breakers, CircuitBreaker, CircuitBreakerConfig, FallbackChain
from swarm_infrastructure.testing import ManualClock, RedisServer

RULES = CircuitBreakerConfig(
    failure_threshold=3, recovery_timeout=60, half_open_max_calls=2, success_threshold=1, probe_timeout=10
)


class Backend:
    """A service that works or doesn't, and counts who calls it."""

    def __init__(self) -> None:
        self.works, self.calls = True, 0
        self.answers: asyncio.Event | None = None

    async def __call__(self, word: str = "ok") -> str:
        self.calls += 1
        works = self.works  # as it was when the call began
        if self.answers is not None:
            await self.answers.wait()
        if not works:
            raise ConnectionError("down")
        return word


@pytest.fixture
def breakers(board: Blackboard) -> Breakers:
    return Breakers(board.store, board.keys, RULES)


async def fail(breaker: CircuitBreaker, n: int = 1) -> None:
    backend = Backend()
    backend.works = False
    for _ in range(n):
        with pytest.raises(ConnectionError):
            await breaker.call(backend)


async def opened(breakers: Breakers, name: str = "runway") -> CircuitBreaker:
    breaker = breakers.get(name)
    await fail(breaker, 3)
    assert (await breaker.state()).state == "open"
    return breaker


async def test_failures_in_a_row_open_it_and_nobody_is_called_any_more(breakers: Breakers) -> None:
    breaker, backend = breakers.get("runway"), Backend()
    await fail(breaker, 2)
    assert await breaker.call(backend, "still") == "still"  # a success: the row begins anew
    await fail(breaker, 3)

    with pytest.raises(CircuitOpenError, match=r"'runway' is open.*in 60\.0 s") as refused:
        await breaker.call(backend)
    assert backend.calls == 1
    assert (refused.value.name, 59 < refused.value.retry_after_s <= 60) == ("runway", True)


async def test_another_process_finds_it_open_and_does_not_reset_it(
    breakers: Breakers, connect: Connect, redis_server: RedisServer, board: Blackboard
) -> None:
    await opened(breakers)
    elsewhere = Breakers(await connect(redis_server.url), board.keys, RULES)
    with pytest.raises(CircuitOpenError):
        await elsewhere.get("runway").call(Backend())
    assert [each.name for each in await elsewhere.states()] == ["runway"]


async def test_a_backend_that_works_leaves_nothing_in_redis(breakers: Breakers, board: Blackboard) -> None:
    before = await snapshot(board.store)
    await breakers.get("runway").call(Backend())
    assert await snapshot(board.store) == before


async def test_after_its_time_a_fixed_number_of_probes_pass_at_once(breakers: Breakers, clock: ManualClock) -> None:
    breaker, backend = await opened(breakers), Backend()
    await clock.advance(s=60)
    backend.answers = asyncio.Event()
    calls = [asyncio.create_task(breaker.call(backend)) for _ in range(10)]
    done, waiting = await asyncio.wait(calls, timeout=1.0)
    assert (backend.calls, len(done), len(waiting)) == (2, 8, 2)
    assert all(isinstance(each.exception(), CircuitOpenError) for each in done)

    backend.answers.set()
    await asyncio.gather(*waiting)
    assert (await breaker.state()).state == "closed"


async def test_a_probe_that_fails_opens_it_for_another_while(breakers: Breakers, clock: ManualClock) -> None:
    breaker = await opened(breakers)
    await clock.advance(s=61)
    await fail(breaker)
    state = await breaker.state()
    assert (state.state, 59 < state.wait_s <= 60) == ("open", True)


async def test_probes_of_dead_processes_make_room_when_their_time_is_over(
    breakers: Breakers, clock: ManualClock
) -> None:
    breaker = await opened(breakers)
    await clock.advance(s=60)
    for dead in ("one", "two"):
        await breakers.enter(breaker.guard, dead)  # and never heard of again
    with pytest.raises(CircuitOpenError) as refused:
        await breaker.call(Backend())
    assert 0 < refused.value.retry_after_s <= 10

    await clock.advance(s=10)
    assert await breaker.call(Backend()) == "ok"


async def test_it_closes_after_as_many_successes_as_it_asks_for(breakers: Breakers, clock: ManualClock) -> None:
    breaker = breakers.get("runway", CircuitBreakerConfig(failure_threshold=1, success_threshold=2))
    await fail(breaker)
    await clock.advance(s=61)
    await breaker.call(Backend())
    assert (await breaker.state()).state == "half_open"
    await breaker.call(Backend())
    assert (await breaker.state()).state == "closed"


async def test_what_began_before_it_opened_says_nothing_afterwards(breakers: Breakers, clock: ManualClock) -> None:
    breaker, old_success, old_failure = breakers.get("runway"), Backend(), Backend()
    old_failure.works = False
    old_success.answers = old_failure.answers = asyncio.Event()
    late = [asyncio.create_task(breaker.call(each)) for each in (old_success, old_failure)]
    while not (old_success.calls and old_failure.calls):
        await asyncio.sleep(0)
    await fail(breaker, 3)
    before = await breakers._store.command("HGETALL", breakers._keys.breakers)
    old_success.answers.set()
    await asyncio.gather(*late, return_exceptions=True)
    assert await breakers._store.command("HGETALL", breakers._keys.breakers) == before


async def test_a_late_failure_does_not_spoil_the_probes(breakers: Breakers, clock: ManualClock) -> None:
    breaker, late = breakers.get("runway"), Backend()
    late.works, late.answers = False, asyncio.Event()
    hanging = asyncio.create_task(breaker.call(late))
    while not late.calls:
        await asyncio.sleep(0)
    await fail(breaker, 3)
    await clock.advance(s=60)
    await breakers.enter(breaker.guard, "probe")
    late.answers.set()
    with pytest.raises(ConnectionError):
        await hanging
    assert (await breaker.state()).state == "half_open"
    assert await breakers.leave(breaker.guard, "probe", "ok") == "closed"


async def test_a_refusal_is_an_answer_and_a_cancelled_call_says_nothing(breakers: Breakers, clock: ManualClock) -> None:
    breaker = breakers.get("runway")

    async def refuse() -> None:
        raise RefusedError("no such voice")

    for _ in range(5):
        with pytest.raises(RefusedError):
            await breaker.call(refuse)
    await fail(breaker, 2)
    backend = Backend()
    backend.answers = asyncio.Event()
    task = asyncio.create_task(breaker.call(backend))
    while not backend.calls:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert ((await breaker.state()).state, (await breaker.state()).failures) == ("closed", 2)


async def test_a_cancelled_probe_gives_its_place_back(breakers: Breakers, clock: ManualClock) -> None:
    breaker = await opened(breakers)
    await clock.advance(s=60)
    hanging = Backend()
    hanging.answers = asyncio.Event()
    tasks = [asyncio.create_task(breaker.call(hanging)) for _ in range(2)]
    while hanging.calls < 2:
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await breaker.call(Backend()) == "ok"


async def test_a_passage_asked_for_twice_takes_one_place(breakers: Breakers, clock: ManualClock) -> None:
    breaker = await opened(breakers)
    await clock.advance(s=60)
    tape = Tape(breakers._store)
    await breakers.enter(breaker.guard, "probe")
    assert await tape.again(tape.last("admit")) == [b"yes", b"probe"]
    assert (await breaker.state()).probes == 1


async def test_a_report_whose_reply_was_lost_counts_once(breakers: Breakers) -> None:
    breaker, tape = breakers.get("runway"), Tape(breakers._store)
    await fail(breaker, 2)
    assert await tape.again(tape.last("leave_breaker")) == b"counted"
    assert (await breaker.state()).failures == 2
    await fail(breaker)
    assert await tape.again(tape.last("leave_breaker")) == b"opened"


async def test_an_operator_opens_and_closes_it(breakers: Breakers) -> None:
    await breakers.open("runway", 120)
    with pytest.raises(CircuitOpenError):
        await breakers.get("runway").call(Backend())
    await breakers.close("runway")
    assert await breakers.get("runway").call(Backend()) == "ok"


async def test_who_opens_or_closes_it_tells(board: Blackboard, clock: ManualClock) -> None:
    told: list[tuple[str, str]] = []

    async def tell(name: str, word: str) -> None:
        told.append((name, word))

    breakers = Breakers(board.store, board.keys, RULES, on_change=tell)
    breaker = await opened(breakers)
    await clock.advance(s=60)
    await breaker.call(Backend())
    assert told == [("runway", "opened"), ("runway", "closed")]


@pytest.mark.parametrize("wrong", [{"failure_threshold": 0}, {"half_open_max_calls": 1.5}, {"recovery_timeout": -1}])
def test_rules_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        CircuitBreakerConfig(**wrong)


@pytest.mark.parametrize("name", ["", "two words", "a|b", "x" * 201])
async def test_a_name_that_could_not_be_read_back_is_refused(breakers: Breakers, name: str) -> None:
    with pytest.raises(InvalidInputError, match="breaker"):
        breakers.get(name)


async def test_the_first_provider_that_works_is_taken_and_an_open_one_is_passed_over(breakers: Breakers) -> None:
    first, second = Backend(), Backend()
    first.works = False
    chain = FallbackChain(breakers, {"runway": first, "heygen": second})
    for _ in range(5):
        assert await chain.call("image") == "image"
        assert chain.used == "heygen"
    assert first.calls == 3  # then its breaker was open


async def test_when_no_provider_works_the_last_ones_error_names_the_others(breakers: Breakers) -> None:
    broken = Backend()
    broken.works = False
    chain = FallbackChain(breakers, {"runway": broken, "heygen": broken})
    with pytest.raises(ConnectionError) as failed:
        await chain.call()
    assert "runway" in failed.value.__notes__[0]


async def test_a_probe_that_is_slower_than_its_time_counts_all_the_same(breakers: Breakers, clock: ManualClock) -> None:
    breaker = await opened(breakers)
    await clock.advance(s=60)
    await breakers.enter(breaker.guard, "slow")
    for n in range(3):  # others come and take its place, as it seems dead
        await clock.advance(s=11)
        await breakers.enter(breaker.guard, f"other {n}".replace(" ", "-"))
    assert await breakers.leave(breaker.guard, "slow", "ok") == "closed"


async def test_of_probes_whose_time_is_over_the_newest_are_remembered(breakers: Breakers, clock: ManualClock) -> None:
    breaker = await opened(breakers)
    await clock.advance(s=60)
    for n in range(40):
        await breakers.enter(breaker.guard, f"dead-{n}")
        await clock.advance(s=11)
    text = await breakers._store.command("HGET", breakers._keys.breakers, "runway")
    assert text.count(b"dead-") <= 22
    assert await breakers.leave(breaker.guard, "dead-0", "ok") == "late"


async def test_one_opened_by_hand_opens_again_when_its_first_probe_fails(
    breakers: Breakers, clock: ManualClock
) -> None:
    await breakers.open("runway", 60)
    await clock.advance(s=61)
    await fail(breakers.get("runway"))
    assert (await breakers.state("runway")).state == "open"
