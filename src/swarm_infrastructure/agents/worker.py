"""The worker: one process of a swarm. Runs its agents, says that they live, and leaves in order when it is told to.

The first SIGTERM or SIGINT drains: no new claims, handlers finish within the grace, the rest is handed back. A second
one skips the grace. A connection that breaks ends nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from random import Random
from typing import IO, Any

import structlog

from ..blackboard.registry import UNKNOWN, Order
from ..blackboard.sweeper import Sweeper
from ..errors import SwarmError, UnavailableError
from ..message_bus import Message, MessageType, Processor
from ..swarm_infrastructure import SwarmInfrastructure, fallback_service
from ..watchdog import Watchdog
from .base import BaseAgent
from .runner import Runner

__all__ = ["Worker"]

log = structlog.get_logger(__name__)
NO_HURRY_S = 366 * 86400.0  # a drained agent finishes what it has in hand, however long that takes


class Worker:
    """Runs agents in this process.

    Args:
        swarm: connected.
        agents: made for this swarm.
        processors: made for its topics.
        random: source of jitter.
    """

    def __init__(
        self,
        swarm: SwarmInfrastructure,
        agents: Sequence[BaseAgent],
        *,
        processors: Sequence[Processor] = (),
        random: Random | None = None,
    ) -> None:
        self._swarm = swarm
        self.runners = [Runner(agent, swarm) for agent in agents]
        self._everybody: list[Runner | Processor] = [*self.runners, *processors]
        self._random = random or Random()
        self._leaving: dict[Runner, asyncio.Task[None]] = {}  # who was ordered to leave
        self._runs: set[asyncio.Task[None]] = set()
        self._finished = 0  # items that had left our hands when it was asked last
        self._joined = asyncio.Event()  # an agent was added
        self._told = asyncio.Event()
        self._look = asyncio.Event()  # there may be orders
        self._hurry = asyncio.Event()

    def tell_to_stop(self) -> None:
        """Drain; told a second time, don't wait for handlers."""
        if self._told.is_set():
            self._hurry.set()
        self._told.set()
        for runner in self.runners:
            runner.stop_claiming()  # from this moment on, not when the loop comes to it

    async def run(self, *, signals: bool = True) -> None:
        """Work until told to stop, by a signal or `tell_to_stop`.

        Raises:
            SwarmError: an agent can't work at all (a section that the board doesn't have, a board that changed).
        """
        loop = asyncio.get_running_loop()
        if signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.tell_to_stop)
        swarm = self._swarm
        sweeper = Sweeper(
            swarm.blackboard,
            bound=swarm.log_bound,
            busy=self._busy,
            chores=(
                swarm.cost_manager.ledger.expire,
                swarm.debates.sweep,
                swarm.task_queues.sweep,
                Watchdog(swarm.blackboard).run_once,
            ),
            upkeep=(swarm.cost_manager.ledger.sweep, swarm.topics.trim, swarm.failure_recovery.checkpoints.sweep),
        )
        beat = asyncio.create_task(self._beat_forever(), name="heartbeat")
        told = asyncio.create_task(self._told.wait(), name="told to stop")
        listening: asyncio.Task[None] | None = None
        try:
            for each in self._everybody:
                await each.start()
            await swarm.timers.start()
            await sweeper.start()
            self._runs |= {asyncio.create_task(each.wait()) for each in self._everybody}
            listening = asyncio.create_task(self._listen(), name="listening for orders")
            await self._wait_for(told)
        finally:
            self._stop_listening()
            await swarm.timers.stop()
            await sweeper.stop()
            await self._drain()
            ending = [beat, told, *self._runs, *([listening] if listening else [])]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            if signals:
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.remove_signal_handler(number)

    async def _wait_for(self, told: asyncio.Task[bool]) -> None:
        """Wait until we are told to stop, or nobody is left."""
        while self._runs and not told.done():
            self._joined.clear()
            joined = asyncio.create_task(self._joined.wait())
            done, _ = await asyncio.wait({told, joined, *self._runs}, return_when=asyncio.FIRST_COMPLETED)
            joined.cancel()
            for run in done & self._runs:
                run.result()  # a runner ends with an error, or because it was ordered to
            self._runs -= done

    def _busy(self) -> bool:
        """Whether anything was done here since this was asked last, or may be done without our knowing."""
        before, self._finished = self._finished, sum(runner.finished for runner in self.runners)
        by_others = len(self._everybody) > len(self.runners) or self._swarm.task_queues.in_use
        return by_others or self._finished != before or self._swarm.blackboard.leases.kept > 0

    @property
    def leaving(self) -> bool:
        """Whether it was told to stop."""
        return self._told.is_set()

    async def add(self, agent: BaseAgent) -> None:
        """Let one more agent work in this process.

        Raises:
            SwarmError: it can't work at all.
        """
        runner = Runner(agent, self._swarm)
        await runner.start()
        if self.leaving:
            await runner.stop(grace_s=0.0)
            return
        self.runners.append(runner)
        self._everybody.append(runner)
        self._runs.add(asyncio.create_task(runner.wait()))
        self._joined.set()
        self._look.set()  # its heartbeat

    async def _drain(self) -> None:
        grace_s = self._swarm.settings.shutdown_grace_s
        held = sum(runner.in_hand for runner in self.runners)
        if held:
            log.info("finishing what is in hand", items=held, grace_s=grace_s)
        for runner in self.runners:
            runner.stop_claiming()
        for task in self._leaving.values():
            task.cancel()  # from here on the grace counts for them too
        await asyncio.gather(*self._leaving.values(), return_exceptions=True)
        stopping = (each.stop(grace_s=grace_s, hurry=self._hurry) for each in self._everybody)
        for error in await asyncio.gather(*stopping, return_exceptions=True):
            if isinstance(error, Exception):  # of one; the others have left in order
                log.error("did not leave in order", error=repr(error), exc_info=error)

    # -- controls ---------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Hear of orders when they are given, not with the next heartbeat."""
        bus = self._swarm.message_bus
        bus.on(MessageType.DRAIN, self._look_now)
        bus.on(MessageType.SHUTDOWN, self._look_now)
        bus.on(MessageType.EMERGENCY, self._stop_everything)
        while True:
            try:
                await bus.start()
                for name in self._swarm.failure_recovery.fallbacks.startable:
                    await bus.register_rpc_handler(fallback_service(name), "start", partial(self._start_fallback, name))
                return
            except UnavailableError as error:  # orders stand in Redis, and come with a heartbeat as well
                log.warning("not listening yet", why=str(error))
                await asyncio.sleep(0.2 + self._random.random())

    async def _start_fallback(self, name: str, _params: Any) -> str | None:
        if self._told.is_set():
            return None
        return await self._swarm.failure_recovery.fallbacks.start(name)

    def _stop_listening(self) -> None:
        bus = self._swarm.message_bus
        bus.off(MessageType.DRAIN, self._look_now)
        bus.off(MessageType.SHUTDOWN, self._look_now)
        bus.off(MessageType.EMERGENCY, self._stop_everything)

    def _look_now(self, _message: Message) -> None:
        self._look.set()

    async def _stop_everything(self, message: Message) -> None:
        told = message.payload if isinstance(message.payload, dict) else {}
        if told.get("board", self._swarm.board.name) != self._swarm.board.name:
            return
        log.error("emergency stop", sender=message.sender, reason=told.get("reason"))
        await asyncio.gather(*(runner.hand_back_all() for runner in self.runners))

    def _obey(self, runner: Runner, order: str) -> None:
        if order not in (Order.DRAIN, Order.SHUTDOWN) or runner in self._leaving:
            return
        grace_s = self._swarm.settings.shutdown_grace_s if order == Order.SHUTDOWN else NO_HURRY_S
        log.info("leaving, as ordered", agent=runner.agent.agent_id, order=order)
        leaving = runner.stop(grace_s=grace_s, hurry=self._hurry)
        self._leaving[runner] = asyncio.create_task(leaving, name=f"{runner.agent.agent_id} leaves")

    async def _beat_forever(self) -> None:
        registry, settings = self._swarm.blackboard.agents, self._swarm.settings
        told: dict[str, str] = {}
        while True:
            try:
                async with asyncio.timeout(settings.heartbeat_s * (0.75 + self._random.random() / 4)):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            rows, here = [], [runner for runner in self.runners if not runner.left]
            for runner in here:
                agent = runner.agent
                facts = None
                if told.get(agent.agent_id) != runner.status:
                    facts = runner.facts() | {
                        "status": runner.status, "host": socket.gethostname(), "pid": os.getpid(),
                    }  # fmt: skip
                rows.append((agent.agent_id, agent.role, facts))
            try:
                answers = await registry.beat_all(rows)
            except UnavailableError as error:
                log.warning("no heartbeat", why=str(error))
                await self._revive()
                continue
            except Exception as error:  # the rim: without a heartbeat nobody sees us, and no order reaches us
                log.error("heartbeat refused", why=str(error), exc_info=not isinstance(error, SwarmError))
                continue
            for runner, (agent_id, _, facts), (_, order) in zip(here, rows, answers, strict=True):
                if order == UNKNOWN:  # Redis has lost what it knew of it: introduce it again
                    told.pop(agent_id, None)
                elif facts is not None:
                    told[agent_id] = str(facts["status"])
                self._obey(runner, order)

    async def _revive(self) -> None:
        try:
            await self._swarm.revive()
        except SwarmError as error:
            log.warning("the private Redis does not come back", why=str(error))


def follow_parent(descriptor: int, worker: Worker) -> None:
    """Drain when the process that started us is gone: its end of the pipe closes, however it died."""

    def gone() -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        log.warning("the supervisor is gone; this worker finishes")
        worker.tell_to_stop()

    asyncio.get_running_loop().add_reader(descriptor, gone)


def say(line: str, *, to: IO[str] | None = None) -> None:
    """One line for people, on stderr."""
    print(line, file=to or sys.stderr, flush=True)
