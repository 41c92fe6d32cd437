"""Swarm: agents, a board, and one call that runs them."""

from __future__ import annotations

import asyncio
import gc
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import structlog

from ..blackboard import NEWS, Board
from ..config import Settings
from ..cost_manager import Budget, Prices, TierTable
from ..errors import ConfigurationError, InvalidInputError, SwarmError
from ..llm import LLMClient
from ..message_bus import Processor, Topics
from ..swarm_infrastructure import SwarmInfrastructure
from .base import BaseAgent
from .supervisor import CONFIG_ERROR, Supervisor, worker_seat
from .worker import Worker, follow_parent, say

__all__ = ["Swarm"]

log = structlog.get_logger(__name__)
YOUNG = 10_000  # objects made before the garbage collector looks at them for the first time
Answer = TypeVar("Answer")
AgentMaker = Callable[..., BaseAgent]
ProcessorMaker = Callable[[Topics], Processor]


class Swarm:
    """Agents on a board.

    .. code-block:: python

        swarm = Swarm([Scout, *[Writer] * 3], board=NEWS)
        if __name__ == "__main__":
            swarm.run(processes=2)

    Args:
        agents: each is called with ``agent_id`` and ``swarm`` in every worker process and gives an agent: a class, or
            ``functools.partial(Class, …)``. Name one several times for several of a kind.
        processors: each is called with the swarm's topics in every worker process and gives a processor: a class, or
            ``functools.partial(Class, …)``.
        fallbacks: by role, who takes over when an agent of it fails, best first: agents as above, which are started when they
            are needed, or names of running ones.
        timers: arguments of `Timers.add` for each: ``{"name": "hourly", "cron": "0 * * * *"}``.
        board: the board; the news board by default.
        settings: `Settings.load()` by default.
        replace_board: put this board in place of another one of its name.
        llm: who answers `Work.ask`; so are *prices*, *tiers* and *budget*: see `SwarmInfrastructure`.
    """

    def __init__(
        self,
        agents: Sequence[AgentMaker] = (),
        *,
        processors: Sequence[ProcessorMaker] = (),
        fallbacks: Mapping[str, Sequence[AgentMaker | str]] | None = None,
        timers: Sequence[Mapping[str, Any]] = (),
        board: Board = NEWS,
        settings: Settings | None = None,
        replace_board: bool = False,
        llm: LLMClient | Mapping[str, LLMClient] | None = None,
        prices: Prices | None = None,
        tiers: TierTable | None = None,
        budget: Budget | None = None,
    ) -> None:
        if not agents and not processors:
            raise InvalidInputError("Swarm(agents=)", found="none", needed="at least one agent or processor class")
        self.fallbacks = {role: tuple(makers) for role, makers in (fallbacks or {}).items()}
        self.processors, self.timers = tuple(processors), tuple(timers)
        self.agents, self.board, self.replace_board = tuple(agents), board, replace_board
        self._settings = settings
        self._money: dict[str, Any] = {"llm": llm, "prices": prices, "tiers": tiers, "budget": budget}

    @property
    def settings(self) -> Settings:
        """The settings, read when they are first needed."""
        if self._settings is None:
            self._settings = Settings.load()
        return self._settings

    def infrastructure(self) -> SwarmInfrastructure:
        """What the swarm runs on, not yet connected."""
        return SwarmInfrastructure(self.board, self.settings, replace_board=self.replace_board, **self._money)

    def make_agents(self, swarm: SwarmInfrastructure) -> list[BaseAgent]:
        """One agent for each entry, with an id that no other process of the swarm uses."""
        tag = secrets.token_hex(2)
        return [make_agent(maker, swarm, f"{tag}-{n}") for n, maker in enumerate(self.agents, 1)]

    def make_worker(self, swarm: SwarmInfrastructure) -> Worker:
        """The worker of this process: the agents, the processors, and the timers."""
        for timer in self.timers:
            swarm.timers.add(**timer)
        worker = Worker(swarm, self.make_agents(swarm), processors=[maker(swarm.topics) for maker in self.processors])
        recovery = swarm.failure_recovery
        for role, makers in self.fallbacks.items():
            recovery.register_fallback(role, [each if isinstance(each, str) else role_of(each) for each in makers])
            for maker in makers:
                if not isinstance(maker, str):
                    recovery.fallbacks.starts(role_of(maker), Understudy(maker, swarm, worker))
        return worker

    def run(
        self,
        *,
        processes: int = 1,
        watch: Callable[[SwarmInfrastructure], Awaitable[Answer]] | None = None,
    ) -> Answer | None:
        """Run the swarm until it is told to stop (SIGTERM, Ctrl-C), or until *watch* returns.

        With one process the agents work here, with more in processes of their own, which run this same command line:
        in them this call works, and then exits.

        Args:
            processes: how many worker processes.
            watch: called once, in the process that was started first, beside the workers; for feeding the board and
                showing progress. When it returns, the workers finish what they have in hand and stop.

        Returns:
            What *watch* returned; None if the swarm was told to stop before.

        Raises:
            ConfigurationError: settings, board or server are wrong.
            UnavailableError: Redis does not answer at the start.
        """
        if not 1 <= processes <= 256:
            raise InvalidInputError("processes", found=processes, needed="1 to 256")
        _prefer_uvloop()
        seat = worker_seat()
        if seat is not None:
            sys.exit(asyncio.run(self._work_for(seat.lifeline)))
        answer: Answer | None = asyncio.run(
            self._work_here(watch) if processes == 1 else self._supervise(processes, watch)
        )
        return answer

    async def _work_for(self, lifeline: int) -> int:
        try:
            async with self.infrastructure() as swarm:
                worker = self.make_worker(swarm)
                _spare_the_collector()
                follow_parent(lifeline, worker)
                await worker.run()
        except ConfigurationError as error:
            say(f"swarm: {error}")
            return CONFIG_ERROR
        except SwarmError as error:
            say(f"swarm: {error}")
            return 1
        return 0

    async def _work_here(self, watch: Callable[[SwarmInfrastructure], Awaitable[Any]] | None) -> Any:
        async with self.infrastructure() as swarm:
            self._say_where(swarm)
            worker = self.make_worker(swarm)
            _spare_the_collector()
            return await _until_watched(worker.run(), watch, swarm, worker.tell_to_stop)

    async def _supervise(self, processes: int, watch: Callable[[SwarmInfrastructure], Awaitable[Any]] | None) -> Any:
        async with self.infrastructure() as swarm:
            self._say_where(swarm)
            supervisor = Supervisor(processes, self.settings.data_dir.absolute())
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, supervisor.tell_to_stop, number)
            try:
                return await _until_watched(supervisor.run(), watch, swarm, supervisor.tell_to_stop)
            finally:
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.remove_signal_handler(number)

    def _say_where(self, swarm: SwarmInfrastructure) -> None:
        if swarm.located is not None:
            say(f"swarm: board {self.board.name!r} on {swarm.located.how}")


def role_of(maker: AgentMaker) -> str:
    """The role of the agents that *maker* makes, as far as it can be told without one."""
    kind = getattr(maker, "func", maker)
    return getattr(kind, "role", "") or getattr(kind, "__name__", "agent").lower()


def make_agent(maker: AgentMaker, swarm: SwarmInfrastructure, tag: str) -> BaseAgent:
    """An agent whose id ends with *tag*."""
    agent = maker(agent_id=f"{role_of(maker)}-{tag}", swarm=swarm)
    if not isinstance(agent, BaseAgent):
        raise ConfigurationError(f"{maker!r} made a {type(agent).__name__}, needed a BaseAgent")
    return agent


class Understudy:
    """A fallback agent of a worker: started when it is first needed, and then the same for everybody."""

    def __init__(self, maker: AgentMaker, swarm: SwarmInfrastructure, worker: Worker) -> None:
        self._maker, self._swarm, self._worker = maker, swarm, worker
        self._starting = asyncio.Lock()
        self._agent: BaseAgent | None = None

    async def __call__(self) -> str | None:
        """Its id; None if the worker leaves."""
        async with self._starting:
            if self._worker.leaving:
                return None
            if self._agent is None or all(each.agent is not self._agent or each.left for each in self._worker.runners):
                agent = make_agent(self._maker, self._swarm, f"{secrets.token_hex(2)}-f")
                await self._worker.add(agent)
                self._agent = agent
            return None if self._worker.leaving else self._agent.agent_id  # it may have been told while we started


async def _until_watched(
    work: Any,
    watch: Callable[[SwarmInfrastructure], Awaitable[Any]] | None,
    swarm: SwarmInfrastructure,
    tell_to_stop: Callable[[], None],
) -> Any:
    """Run *work* and *watch* side by side until either ends; then stop the other."""
    working = asyncio.ensure_future(work)
    if watch is None:
        await working
        return None
    watching = asyncio.ensure_future(watch(swarm))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not watching.done():  # told to stop, or the workers can't work
            await working
            return None
        return watching.result()
    finally:
        watching.cancel()
        if not working.done():
            tell_to_stop()
        await asyncio.gather(working, watching, return_exceptions=True)


def _spare_the_collector() -> None:
    """What was made up to here, code and modules for the most part, stays: the garbage collector need not go through it
    again and again while items come and go. And it looks for rings in what is new less often: an item is some twelve objects,
    and those of a batch are in use all at once."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])


def _prefer_uvloop() -> None:
    try:
        import uvloop
    except ImportError:
        return
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
