"""Debater: an agent that is asked for its opinion, argues, and votes once.

It holds no items. An invitation wakes it; one that it missed it finds on the board within a second or two.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import structlog

from ..consensus import Debate
from ..errors import DebateRefusedError, InvalidInputError, SwarmError
from ..message_bus import MessageType
from .asking import Answered, ask
from .base import BaseAgent

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ..llm.types import ChatMessage
    from ..swarm_infrastructure import SwarmInfrastructure

__all__ = ["Ballot", "Debater", "Seat"]

log = structlog.get_logger(__name__)
LOOK_S = 1.0  # how long it trusts its ears; a missed invitation costs this much
AGAIN_S = 2.0  # before it tries a debate again in which it failed
AT_ONCE = 8  # debates in which it makes up its mind at the same time, unless the class names its slots
TRIES = 3  # in one debate: an opinion may cost money each time


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """What a debater says."""

    choice: str  #: one of the debate's options
    confidence: float = 1.0  #: 0 to 1; what the vote weighs
    argument: str = ""  #: brought forward before the vote; "" for none
    reason: str = ""  #: kept with the vote


class Seat:
    """A debater's seat in one debate: what it can do there beside making up its mind."""

    __slots__ = ("_closes_at", "_swarm", "agent_id", "debate", "role", "stance")

    def __init__(self, swarm: SwarmInfrastructure, debate: Debate, agent_id: str, role: str, stance: str) -> None:
        self._swarm, self.debate, self.agent_id, self.role, self.stance = swarm, debate, agent_id, role, stance
        self._closes_at = asyncio.get_running_loop().time() + debate.left_s

    @property
    def swarm(self) -> SwarmInfrastructure:
        """The swarm that it takes part for."""
        return self._swarm

    @property
    def item_id(self) -> str:
        """The item that the debate is about; the debate, if it is about none. Its answers are recorded there."""
        return self.debate.item_id or self.debate.id

    @property
    def key(self) -> str:
        """Names what is asked here to a provider: the same for every debater of a stance."""
        return f"{self.item_id}:debate:{self.stance or self.role}"

    def check(self) -> None:
        """Raise `DebateRefusedError` if the debate is over: what is asked now would come too late."""
        if asyncio.get_running_loop().time() >= self._closes_at:
            raise DebateRefusedError(self.debate.id, self.agent_id, "late", "its deadline has passed")

    async def ask(
        self,
        task_type: str,
        prompt: str | Sequence[ChatMessage | Mapping[str, Any]],
        *,
        schema: type[BaseModel] | None = None,
        step: str | None = None,
        **more: Any,
    ) -> Answered:
        """Ask a model, as `Work.ask` does; the record is shared by all debaters of a stance, so that after a crash another
        one need not pay again."""
        step = step or f"{task_type}:{self.stance or self.role}"
        return await ask(self, task_type, prompt, schema=schema, step=step, **more)

    @property
    def claim(self) -> None:
        """There is none: others hold the item."""


class Debater(BaseAgent):
    """An agent that takes part in debates. Override `argue`.

    .. code-block:: python

        class Sceptic(Debater):
            stance = "contra"

            async def argue(self, debate: Debate, seat: Seat) -> Ballot:
                opinion = (await seat.ask("debate_argument", debate.topic, schema=Opinion)).parsed
                return Ballot(choice=opinion.choice, confidence=opinion.confidence, argument=opinion.text)
    """

    role = "debater"
    stance = ""  #: what it speaks for; who invites can choose one of each
    cycle_s = 0.0

    def __init__(self, *args: Any, **facts: Any) -> None:
        super().__init__(*args, **facts)
        if self.stance and self.stance not in self.capabilities:
            self.capabilities = (*self.capabilities, self.stance)  # type: ignore[misc]  # so that others find it
        self._called: asyncio.Event | None = None
        self._failures: dict[str, list[float]] = {}  # debate → when it failed there
        self._at_work: set[str] = set()  # debates in which it is making up its mind
        self._random = Random()

    async def argue(self, debate: Debate, seat: Seat) -> Ballot | None:
        """Say what it thinks. None: it abstains. What raises is tried three times."""
        raise NotImplementedError(f"{type(self).__name__} must override argue")

    async def _process_cycle(self) -> None:
        if self._called is None:
            called = self._called = asyncio.Event()
            self.bus.on(MessageType.DEBATE_INVITE, lambda _message: called.set())
        try:
            async with asyncio.timeout(LOOK_S * (0.75 + self._random.random() / 2)):
                await self._called.wait()
        except TimeoutError:
            pass
        self._called.clear()
        gates = await self.swarm.blackboard.agents.gates()
        if gates.keys() & {"*", f"role:{self.role}", f"agent:{self.agent_id}"}:
            return  # paused, by somebody or for want of money
        now = asyncio.get_running_loop().time()
        found = await self.swarm.debates.open_debates(self.agent_id, self.role)
        self._failures = {each.id: self._failures[each.id] for each in found if each.id in self._failures}
        for debate in found:
            if (
                debate.id not in self._at_work
                and len(self._at_work) < (self.slots or AT_ONCE)
                and self._may_try(debate, now)
            ):
                self._at_work.add(debate.id)
                task = asyncio.create_task(self._take_part(debate), name=f"{self.agent_id} in {debate.id}")
                self.background.add(task)
                task.add_done_callback(partial(self._is_done, debate.id))

    def _is_done(self, debate_id: str, task: asyncio.Task[None]) -> None:
        self._at_work.discard(debate_id)
        self.background.discard(task)
        if self._called is not None:
            self._called.set()  # there may be one that waited for a free slot

    def _may_try(self, debate: Debate, now: float) -> bool:
        failed = self._failures.get(debate.id, [])
        return not failed or (len(failed) < TRIES and now - failed[-1] >= AGAIN_S)

    async def _take_part(self, debate: Debate) -> None:
        seat = Seat(self.swarm, debate, self.agent_id, self.role, self.stance)
        try:
            ballot = await self.argue(debate, seat)
            if ballot is None:
                self._failures[debate.id] = [math.inf]
                return
            if not isinstance(ballot, Ballot):
                raise InvalidInputError(f"{type(self).__name__}.argue", found=ballot, needed="a Ballot, or None")
            debates = self.swarm.debates
            if ballot.argument:
                await self._bring(debate, ballot)
            await debates.vote(
                debate.id, self.agent_id, ballot.choice, ballot.confidence, ballot.reason, role=self.role
            )
        except DebateRefusedError as error:
            self._failures[debate.id] = [math.inf]  # it will not be taken another time
            log.info("not taken part", debate=debate.id, agent=self.agent_id, why=error.why)
        except Exception as error:  # the rim: an opinion may raise anything
            self._failures.setdefault(debate.id, []).append(asyncio.get_running_loop().time())
            log.warning(
                "no opinion yet", debate=debate.id, agent=self.agent_id, error=str(error) or repr(error),
                exc_info=not isinstance(error, SwarmError),
            )  # fmt: skip

    async def _bring(self, debate: Debate, ballot: Ballot) -> None:
        try:
            await self.swarm.debates.argue(
                debate.id, self.agent_id, ballot.choice, ballot.argument, ballot.confidence, role=self.role
            )
        except DebateRefusedError as error:
            if error.kind != "arguments":
                raise
            log.info("not argued", debate=debate.id, agent=self.agent_id, why=error.why)  # it may vote nevertheless


async def bench(swarm: SwarmInfrastructure, role: str = Debater.role) -> dict[str, str]:
    """Debaters that are here now: an agent for each stance (capability), chosen at random if there are several."""
    found: dict[str, list[str]] = {}
    for agent in await swarm.blackboard.agents.list():
        if agent.role == role and agent.status not in ("offline", "paused"):
            for stance in agent.capabilities:
                found.setdefault(stance, []).append(agent.agent_id)
    return {stance: Random().choice(agents) for stance, agents in sorted(found.items())}
