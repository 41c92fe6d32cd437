"""Timers: each tick once in the swarm, on Redis' clock, and what was missed by the timer's own policy."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from given import Connect, Tape, in_time, snapshot, until

from bus import bus_clock
from swarm_infrastructure.errors import InvalidInputError
from swarm_infrastructure.message_bus.timers import Tick, Timer, Timers
from swarm_infrastructure.message_bus.topics import Topic, Topics
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import ManualClock, RedisServer

HOUR = 3600


@pytest.fixture
def topics(store: Store) -> Topics:
    return Topics(store, "test")


@pytest.fixture
async def clock(topics: Topics) -> ManualClock:
    """Moves the clock, which stands two minutes after a full hour."""
    clock = bus_clock(topics)
    seconds, micros = await topics.store.command("TIME")
    into_the_hour_s = int(seconds) % HOUR + int(micros) / 1e6
    await clock.advance(s=HOUR - into_the_hour_s + 120)
    return clock


@pytest.fixture
def timers(topics: Topics) -> Timers:
    return Timers(topics.store, "test", topics)


@pytest.fixture
async def ticks(topics: Topics) -> Topic:
    return await topics.open("ticks", partitions=1)


async def ticked(topic: Topic) -> list[Tick]:
    return [await each.decode(Tick, topic.codec) for each in await topic.read(count=10_000)]


async def test_a_timer_ticks_at_its_times_and_not_before(timers: Timers, ticks: Topic, clock: ManualClock) -> None:
    timers.add("hourly", cron="0 * * * *", payload={"n": 1})
    wait_s = await timers.run_once()
    assert wait_s == 5.0, "it looks again before the hour is over, in case somebody changed the clock"
    await clock.advance(s=57 * 60)
    assert await ticked(ticks) == []
    await clock.advance(s=61)

    await timers.run_once()
    await timers.run_once()

    [tick] = await ticked(ticks)
    assert (tick.timer, tick.missed, tick.payload) == ("hourly", 0, {"n": 1})
    assert (tick.at.minute, tick.at.second, tick.at.tzinfo) == (0, 0, UTC)


async def test_many_processes_tick_once(
    connect: Connect, redis_server: RedisServer, topics: Topics, ticks: Topic, clock: ManualClock
) -> None:
    processes = []
    for _ in range(8):
        store = await connect(redis_server.url)
        timers = Timers(store, "test", Topics(store, "test"))
        timers.add("often", every_s=30)
        processes.append(timers)
    await asyncio.gather(*(each.run_once() for each in processes))

    for _ in range(5):
        await clock.advance(s=30)
        await asyncio.gather(*(each.run_once() for each in processes))

    found = await ticked(ticks)
    assert len(found) == 5
    assert all((b.at - a.at).total_seconds() == 30 for a, b in pairwise(found))


async def test_a_running_timer_ticks_by_itself(timers: Timers, ticks: Topic) -> None:
    timers.add("often", every_s=0.1)
    await timers.start()

    async def three() -> bool:
        return len(await ticked(ticks)) >= 3

    await until(three)
    await timers.stop()
    found = await ticked(ticks)
    assert len({tick.at for tick in found}) == len(found)


@pytest.mark.parametrize(
    ("missed", "expected"),
    [("skip", []), ("once", [(4, 3)]), ("all", [(1, 0), (2, 0), (3, 0), (4, 0)])],
)
async def test_ticks_that_nobody_was_there_to_give(
    timers: Timers, ticks: Topic, clock: ManualClock, missed: Any, expected: list[tuple[int, int]]
) -> None:
    timers.add("hourly", cron="0 * * * *", missed=missed)
    await timers.run_once()
    begun = await now(ticks)
    await clock.advance(s=4 * HOUR)

    await timers.run_once()
    await timers.run_once()
    found = [(round((tick.at.timestamp() - begun + 120) / HOUR), tick.missed) for tick in await ticked(ticks)]
    assert found == expected

    await clock.advance(s=58 * 60 + 5)
    await timers.run_once()
    last = (await ticked(ticks))[-1]
    assert (round((last.at.timestamp() - begun + 120) / HOUR), last.missed) == (5, 0), "then it goes on as ever"


async def now(topic: Topic) -> float:
    """The time on the bus' clock, in seconds."""
    seconds, _ = await topic.store.command("TIME")
    offset = await topic.store.command("HGET", topic.bus_keys.rules, "clock_offset_ms")
    return float(int(seconds) + int(offset or 0) / 1000)


async def test_a_tick_that_comes_a_little_late_is_not_missed(timers: Timers, ticks: Topic, clock: ManualClock) -> None:
    timers.add("hourly", cron="0 * * * *")
    timers.add("patient", cron="0 * * * *", late_s=600)
    await timers.run_once()
    await clock.advance(s=58 * 60 + 30)
    await timers.run_once()
    assert sorted(tick.timer for tick in await ticked(ticks)) == ["hourly", "patient"]
    await clock.advance(s=HOUR + 300)

    await timers.run_once()

    assert sorted(tick.timer for tick in await ticked(ticks)) == ["hourly", "patient", "patient"]


async def test_after_a_long_pause_the_newest_thousand_ticks_are_given(
    timers: Timers, ticks: Topic, clock: ManualClock
) -> None:
    timers.add("minutely", cron="* * * * *", missed="all")
    timers.add("often", every_s=60, missed="once")
    await timers.run_once()
    await clock.advance(s=2000 * 60)

    await timers.run_once()

    found = await ticked(ticks)
    minutely = [tick for tick in found if tick.timer == "minutely"]
    [often] = [tick for tick in found if tick.timer == "often"]
    assert len(minutely) == 1000
    assert minutely[-1].at == often.at, "the newest"
    assert often.missed == 1000


async def test_a_tick_whose_reply_was_lost_is_given_once(timers: Timers, ticks: Topic, clock: ManualClock) -> None:
    timers.add("often", every_s=30)
    await timers.run_once()
    await clock.advance(s=30)
    tape = Tape(ticks.store)
    await timers.run_once()
    before = await snapshot(ticks.store)

    assert (await tape.again(tape.last("tick")))[0] == b"other"

    assert await snapshot(ticks.store) == before


async def test_redis_clock_decides_when_it_is_time(timers: Timers, ticks: Topic, clock: ManualClock) -> None:
    timers.add("often", every_s=30)
    await timers.run_once()
    await clock.advance(s=30)
    tape = Tape(ticks.store)
    await timers.run_once()
    call = tape.last("tick")
    _, last_ms, due_ms, *rest = call.args
    before = await snapshot(ticks.store)

    answer = await ticks.store.call("tick", call.keys, ["often", due_ms, due_ms + 3_600_000, *rest])

    assert answer[0] == b"early"
    assert last_ms < due_ms
    assert await snapshot(ticks.store) == before


async def test_a_tick_that_finds_its_topic_full_comes_when_there_is_room(
    topics: Topics, timers: Timers, clock: ManualClock
) -> None:
    full = await topics.open("full", partitions=1, most=1)
    other = await topics.open("other", partitions=1)
    async with full.consume("reader", poll_s=0.01) as deliveries:
        timers.add("stuck", every_s=30, topic="full", missed="all")
        timers.add("free", every_s=30, topic="other")
        await full.publish("in the way")
        await timers.run_once()
        await clock.advance(s=30)
        assert await timers.run_once() <= 0.5
        assert len(await ticked(other)) == 1, "the others go on"

        await (await in_time(anext(deliveries))).done()
        await timers.run_once()
        tick = await (await in_time(anext(deliveries))).decode(Tick)
        assert tick.timer == "stuck"


async def test_the_ticks_of_one_moment_are_given_together_even_if_they_fill_their_topic_up(
    topics: Topics, timers: Timers, clock: ManualClock
) -> None:
    topic = await topics.open("small", partitions=1, most=2)
    async with topic.consume("reader", poll_s=0.01):
        timers.add("often", every_s=30, topic="small", missed="all")
        await timers.run_once()
        await clock.advance(s=150)
        await timers.run_once()
        assert len(await ticked(topic)) == 5


async def test_a_timer_that_was_changed_goes_on_from_its_last_tick(
    topics: Topics, timers: Timers, ticks: Topic, clock: ManualClock
) -> None:
    timers.add("t", every_s=30)
    await timers.run_once()
    await clock.advance(s=30)
    await timers.run_once()
    changed = Timers(topics.store, "test", topics)
    changed.add("t", cron="0 * * * *", missed="once")

    await clock.advance(s=2 * HOUR)
    await changed.run_once()

    assert [tick.missed for tick in await ticked(ticks)] == [0, 1]
    assert b"0 * * * *" in await topics.store.command("HGET", topics.keys.timers, "t")


async def test_a_handler_hears_each_tick_of_its_timer_in_one_process(
    topics: Topics, timers: Timers, clock: ManualClock
) -> None:
    heard: list[tuple[str, str]] = []
    timers.add("a", every_s=30)
    timers.add("b", every_s=30)
    await timers.run_once()

    async def hear(process: str, tick: Tick) -> None:
        heard.append((process, tick.timer))

    processors = [timers.on("a", lambda tick, process=process: hear(process, tick)) for process in ("one", "two")]
    for processor in processors:
        await processor.start()
    for n in range(1, 4):
        await clock.advance(s=30)
        await timers.run_once()

        async def all_heard(n: int = n) -> bool:
            lag = await (await topics.get("ticks")).lag("timer_a")
            return lag.total == 0 and len(heard) >= n

        await until(all_heard)  # else the clock moves on over a lease
    for processor in processors:
        await processor.stop(grace_s=1)
    assert [timer for _, timer in heard] == ["a"] * 3


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        ({}, "cron and every_s"),
        ({"cron": "* * * * *", "every_s": 5}, "cron and every_s"),
        ({"every_s": 0.01}, "every_s"),
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"cron": "* * * * *", "tz": "Mars/Base"}, "tz"),
        ({"every_s": 5, "missed": "twice"}, "missed"),
        ({"every_s": 5, "topic": "Not A Name"}, "topic"),
    ],
)
def test_a_timer_that_makes_no_sense_is_refused(timers: Timers, facts: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidInputError, match=what):
        timers.add("t", **facts)


def a_cron(cron: str, zone: str) -> Timer:
    return Timer(name="t", topic="ticks", cron=cron, tz=zone, zone=ZoneInfo(zone))


def ms(text: str, zone: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


def test_a_cron_follows_the_clocks_of_its_zone() -> None:
    berlin = "Europe/Berlin"
    daily = a_cron("30 9 * * *", berlin)
    # the clocks go forward on 2026-03-29 and back on 2026-10-25
    assert daily.next_after(ms("2026-03-28T10:00", berlin)) == ms("2026-03-29T09:30", berlin)
    assert ms("2026-03-29T09:30", berlin) - ms("2026-03-28T09:30", berlin) == 23 * HOUR * 1000
    assert daily.next_after(ms("2026-10-24T10:00", berlin)) - ms("2026-10-24T09:30", berlin) == 25 * HOUR * 1000
    gap = a_cron("30 2 * * *", berlin)
    in_the_gap = gap.due(ms("2026-03-28T12:00", berlin), ms("2026-03-29T12:00", berlin))
    assert in_the_gap == [ms("2026-03-29T03:00", berlin)], "02:30 does not exist: it comes after the gap"
    twice = gap.due(ms("2026-10-24T12:00", berlin), ms("2026-10-25T12:00", berlin))
    assert len(twice) == 1, "02:30 comes twice: it is taken once"


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York"])
@pytest.mark.parametrize("cron", ["30 2 * * *", "*/7 * * * *", "0 */6 * * *", "15 9 * * 1-5"])
def test_what_is_due_is_what_comes_next_one_after_another(cron: str, zone: str) -> None:
    """Looking back from now finds the ticks that looking forward would have given, also when the clocks change."""
    timer = a_cron(cron, zone)
    for day in ((3, 6), (3, 27), (10, 23), (10, 30)):
        begin = datetime(2026, *day, 0, 0, 30, tzinfo=ZoneInfo(zone))
        begin_ms = round(begin.timestamp() * 1000)
        forward = CronSim(cron, begin)
        ticks = [round(next(forward).timestamp() * 1000) for _ in range(1000 if "7" in cron else 20)]
        for n in (0, 1, 19, len(ticks) - 1):
            assert timer.due(begin_ms, ticks[n]) == ticks[: n + 1]
            assert timer.due(begin_ms, ticks[n] - 1) == ticks[:n]
        assert all(timer.next_after(a) == b for a, b in pairwise(ticks[:50]))


def test_a_zone_whose_clocks_change_by_half_an_hour_misses_no_tick() -> None:
    """Looking forward, cronsim 2.8 leaves out 06:00 on this day; what is due is found looking back."""
    zone = "Australia/Lord_Howe"
    due = a_cron("0 */6 * * *", zone).due(ms("2026-04-04T23:00", zone), ms("2026-04-05T23:00", zone))
    assert due == [ms(f"2026-04-05T{hour:02}:00", zone) for hour in (0, 6, 12, 18)]
