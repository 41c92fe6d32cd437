"""Controls: pause, resume, drain, shut down, emergency stop; for one agent, a role or all.

What is decided stands in Redis, as a gate or an order, and holds whether anybody hears of it or not. The message that
goes with it makes it quick.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import structlog

from ..blackboard import Blackboard
from ..blackboard.registry import Order
from ..errors import UnavailableError
from .messages import Message, MessageType

__all__ = ["Controls"]

log = structlog.get_logger(__name__)
EMERGENCY = "emergency"


class Controls:
    """Tells the agents of a board what to do.

    Args:
        blackboard: the board that they work on.
        broadcast: tells a message to every process; see `MessageBus.broadcast`.
        sender: who says so.
    """

    def __init__(
        self, blackboard: Blackboard, broadcast: Callable[[Message], Awaitable[int]], *, sender: str = "swarm"
    ) -> None:
        self._agents, self._board = blackboard.agents, blackboard.board.name
        self._broadcast, self._sender = broadcast, sender

    async def pause(self, who: str = "*", *, reason: str = "paused") -> None:
        """Stop claims of ``agent:ID``, ``role:ROLE`` or ``*`` (all); what they hold they may finish."""
        await self._agents.pause(who, reason=reason)
        await self._tell(MessageType.PAUSE, who, reason)

    async def resume(self, who: str = "*") -> bool:
        """Let them claim again, within a second; False if they were not paused."""
        was_shut = await self._agents.resume(who)
        await self._tell(MessageType.RESUME, who, "")
        return was_shut

    async def drain(self, who: str = "*", *, reason: str = "") -> Sequence[str]:
        """Have the agents that are here now claim no more, finish what they have in hand, and leave. Returns who was told."""
        told = await self._agents.order(Order.DRAIN, who)
        await self._tell(MessageType.DRAIN, who, reason)
        return told

    async def shutdown(self, who: str = "*", *, reason: str = "") -> Sequence[str]:
        """As `drain`, within the grace: what is not finished by then is handed back. Returns who was told."""
        told = await self._agents.order(Order.SHUTDOWN, who)
        await self._tell(MessageType.SHUTDOWN, who, reason)
        return told

    async def emergency_stop(self, reason: str) -> int:
        """Stop everything: nobody claims, and what is in hand is handed back at once. `resume` ends it.

        Returns:
            How many processes were listening. The others stop with their next claim.
        """
        await self._agents.pause("*", reason=f"{EMERGENCY}: {reason}")
        return await self._tell(MessageType.EMERGENCY, "*", reason)

    async def _tell(self, msg_type: MessageType, who: str, reason: str) -> int:
        message = Message.create(msg_type, self._sender, who, {"reason": reason, "board": self._board}, priority=0)
        try:
            return await self._broadcast(message)
        except UnavailableError as error:  # it stands in Redis; they learn of it a little later
            log.warning("a control message was not told", type=str(msg_type), why=str(error))
            return 0
