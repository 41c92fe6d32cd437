"""Timers: what is to happen at certain times, once in the whole swarm, however many processes look at the clock.

There is no leader that could die. Every process that runs timers looks when one is due, on Redis' clock, and the first that
does so lets it tick: in one step the timer's last tick is moved on and a `Tick` is published to a durable topic. So a tick is
neither given twice nor lost with the process that saw it; a `Processor` of that topic does the work.

A tick that nobody was there to give is *missed* (it is older than ``late_s``); what becomes of it is the timer's own choice:

=========  ==========================================================================
``skip``   nothing: the next tick comes when it is due
``once``   one tick, for the newest of them; it says how many others there were
``all``    each of them, the newest thousand
=========  ==========================================================================
"""

from __future__ import annotations

import asyncio
import random as chance
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import orjson
import structlog
from cronsim import CronSim, CronSimError
from pydantic import BaseModel

from ..errors import InvalidInputError, LibraryMismatchError, SwarmError
from ..keys import BusKeys, check_name
from ..store import Store
from .processor import Processor
from .topics import Delivery, Topics
from .topics.publishing import Envoy, refusal

__all__ = ["Missed", "Tick", "Timer", "Timers"]

log = structlog.get_logger(__name__)

Missed = Literal["skip", "once", "all"]
LATE_S = 60.0  # how late a tick may come and still be on time: a restart of all workers takes less
MOST_MISSED = 1000  # ticks that are given, or counted, after a long pause
LOOK_S = 5.0  # how often a process looks at least: timers of others may have moved on


class Tick(BaseModel):
    """What a timer publishes; its key is the timer's name."""

    timer: str
    at: datetime  #: when it was due, in UTC
    missed: int = 0  #: ticks before this one that nobody was there to give, `MOST_MISSED` at most; with ``once``
    payload: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """A timer; made by `Timers.add`."""

    name: str
    topic: str
    cron: str = ""
    tz: str = "UTC"
    every_s: float = 0.0
    payload: Any = None
    missed: Missed = "skip"
    late_s: float = LATE_S
    zone: ZoneInfo = field(default=ZoneInfo("UTC"), compare=False)

    def next_after(self, ms: int) -> int:
        """When it ticks next after *ms*, in ms since the epoch.

        An interval's ticks are multiples of it since the epoch, so that all processes agree on them.
        """
        if not self.cron:
            every = round(self.every_s * 1000)
            return (ms // every + 1) * every
        return _ms(next(CronSim(self.cron, _time(ms, self.zone))))

    def due(self, last_ms: int, now_ms: int) -> list[int]:
        """Its ticks after *last_ms* until *now_ms*, oldest first; at most the newest `MOST_MISSED` + 1."""
        found: list[int] = []
        if self.cron:
            # a second later, looking back: now itself belongs to it
            for when in CronSim(self.cron, _time(now_ms, self.zone) + timedelta(seconds=1), reverse=True):
                at = _ms(when)
                if at <= last_ms or len(found) > MOST_MISSED:
                    break
                if at <= now_ms:
                    found.append(at)
        else:
            every = round(self.every_s * 1000)
            at = now_ms // every * every
            while at > last_ms and len(found) <= MOST_MISSED:
                found.append(at)
                at -= every
        return found[::-1]

    def ticks(self, due: Sequence[int], now_ms: int) -> list[Tick]:
        """What is to be published for the ticks that are *due* now."""
        on_time = [at for at in due if now_ms - at <= self.late_s * 1000]
        match self.missed:
            case "all":
                given, missed = list(due[-MOST_MISSED:]), 0
            case "once":
                given, missed = list(due[-1:]), len(due) - 1
            case _:
                given, missed = on_time[-1:], 0
        return [
            Tick(timer=self.name, at=_time(at, ZoneInfo("UTC")).astimezone(UTC), missed=missed, payload=self.payload)
            for at in given
        ]

    def spec(self) -> str:
        """What it is, as it stands in Redis for whoever looks."""
        facts = {"topic": self.topic, "missed": self.missed}
        facts |= {"cron": self.cron, "tz": self.tz} if self.cron else {"every_s": self.every_s}  # type: ignore[dict-item]
        return orjson.dumps(facts).decode()


class Timers:
    """The timers of a namespace, as this process knows them.

    Args:
        store: the Redis.
        namespace: of the bus.
        topics: where ticks are published.
        random: source of jitter.
    """

    def __init__(self, store: Store, namespace: str, topics: Topics, *, random: chance.Random | None = None) -> None:
        self._store, self._topics = store, topics
        self._keys = BusKeys(namespace)
        self._random = random or chance.Random()
        self._timers: dict[str, Timer] = {}
        self._task: asyncio.Task[None] | None = None

    def add(
        self, name: str, *, cron: str = "", every_s: float = 0.0, tz: str = "UTC", topic: str = "ticks", payload: Any = None,
        missed: Missed = "skip", late_s: float = LATE_S,
    ) -> Timer:  # fmt: skip
        """Add a timer. It begins when a process first runs it; what is changed later goes on from its last tick.

        Args:
            name: of the timer.
            cron: when it ticks, ``minute hour day month weekday``, in *tz*; or:
            every_s: how often it ticks.
            tz: time zone of *cron*, such as ``Europe/Berlin``; a time that the clocks leave out in spring comes after
                the gap, one that comes twice in autumn is taken once.
            topic: where its ticks are published.
            payload: JSON data that each tick carries.
            missed: what becomes of ticks that nobody was there to give: ``skip``, ``once`` or ``all``.
            late_s: after how long a tick is missed rather than late.

        Raises:
            InvalidInputError: a fact is wrong; the message names it.
        """
        check_name("timer", name)
        check_name("topic", topic)
        what = f"timer {name!r}"
        if bool(cron) == bool(every_s):
            raise InvalidInputError(f"{what}: cron and every_s", found=(cron, every_s), needed="one of them")
        if not cron and not every_s >= 0.1:
            raise InvalidInputError(f"{what}: every_s", found=every_s, needed="0.1 or more")
        if missed not in ("skip", "once", "all"):
            raise InvalidInputError(f"{what}: missed", found=missed, needed="skip, once or all")
        try:
            zone = ZoneInfo(tz)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise InvalidInputError(f"{what}: tz", found=tz, needed="a time zone, such as Europe/Berlin") from error
        timer = Timer(
            name=name,
            cron=cron,
            tz=tz,
            every_s=every_s,
            topic=topic,
            payload=payload,
            missed=missed,
            late_s=late_s,
            zone=zone,
        )
        if cron:
            try:
                timer.next_after(0)
            except (CronSimError, StopIteration) as error:
                raise InvalidInputError(
                    f"{what}: cron", found=cron, needed=f"minute hour day month weekday ({error or 'it never ticks'})"
                ) from error
        self._timers[name] = timer
        return timer

    def on(self, name: str, handler: Callable[[Tick], Awaitable[Any]]) -> Processor:
        """A processor that calls *handler* with each tick of timer *name*, in one process of the swarm; start it, and stop it."""
        timer = self._timers[name]

        class TimerProcessor(Processor):
            source, group = timer.topic, f"timer_{name}"[:64]

            async def process(self, message: Tick, delivery: Delivery) -> None:
                if message.timer == name:
                    await handler(message)

        return TimerProcessor(self._topics)

    async def run_once(self) -> float:
        """Let every timer tick that is due and that nobody else let tick. Returns seconds until the next one is due."""
        if not self._timers:
            return LOOK_S
        timers = list(self._timers.values())
        words = [word for timer in timers for word in (timer.name, timer.spec())]
        answer = await self._store.call("read_timers", [self._keys.rules, self._keys.timers], words)
        now_ms, *lasts = (int(each) for each in answer)
        next_ms = now_ms + round(LOOK_S * 1000)
        for timer, last_ms in zip(timers, lasts, strict=True):
            if due := timer.due(last_ms, now_ms):
                try:
                    await self._tick(timer, last_ms, due, now_ms)
                except SwarmError as error:  # of this timer alone: a full topic must not stop the others
                    log.warning("a timer can't tick, trying again", timer=timer.name, why=str(error))
                    next_ms = min(next_ms, now_ms + 500)
            next_ms = min(next_ms, timer.next_after(now_ms))
        return max(0.0, (next_ms - now_ms) / 1000)

    async def _tick(self, timer: Timer, last_ms: int, due: Sequence[int], now_ms: int) -> bool:
        topic = await self._topics.get(timer.topic)
        envoy = Envoy(first_key=4)
        envoy.index_of(topic.route)
        words: list[Any] = []
        for tick in timer.ticks(due, now_ms):
            words += envoy.words(await topic.message(tick, key=timer.name, id=f"{timer.name}@{_ms(tick.at)}"))
        keys = [self._keys.rules, self._keys.topics, self._keys.timers, *envoy.keys]
        match await self._store.call("tick", keys, [timer.name, last_ms, due[-1], *envoy.said, *words]):
            case [b"ticked"]:
                return True
            case [b"other" | b"early", _]:
                return False
            case answer:
                raise refusal(answer, topic.route) or LibraryMismatchError("tick", answer)

    async def run(self) -> None:
        """Let timers tick until cancelled. Redis may go away and come back."""
        while True:
            try:
                wait_s = await self.run_once()
            except SwarmError as error:
                log.warning("timers stand still, trying again", why=str(error))
                wait_s = 0.5
            # a little apart from the other processes: one is enough
            await asyncio.sleep(min(wait_s, LOOK_S) + 0.002 + self._random.random() * 0.05)

    async def start(self) -> None:
        """`run`, in the background, until `stop`."""
        if self._task is None:
            await self.run_once()
            self._task = asyncio.create_task(self.run(), name="timers")

    async def stop(self) -> None:
        """End what `start` began."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def _time(ms: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(ms / 1000, zone)


def _ms(when: datetime) -> int:
    return round(when.timestamp() * 1000)
