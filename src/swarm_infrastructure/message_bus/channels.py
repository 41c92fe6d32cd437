"""Channels: where messages are told, by name, and the names of work queues and services."""

from __future__ import annotations

from ..errors import InvalidInputError
from ..keys import check_id, check_name

__all__ = ["Channels", "check_channel"]

# Roles that make one product stand in one tier; any other role is a tier of its own.
_TIERS = dict.fromkeys(("script_writer", "visual_designer", "video_editor", "publisher", "writer"), "producer")


class Channels:
    """Names of channels, work queues and services. Any other name of the same form will do for your own."""

    BROADCAST_ALL = "swarm.broadcast.all"
    BROADCAST_CONTROL = "swarm.broadcast.control"  #: overtakes what waits in other channels
    BROADCAST_EMERGENCY = "swarm.broadcast.emergency"  #: overtakes what waits in other channels

    TIER_SCOUT = "swarm.tier.scout"
    TIER_ANALYST = "swarm.tier.analyst"
    TIER_DEBATER = "swarm.tier.debater"
    TIER_PRODUCER = "swarm.tier.producer"
    TIER_REVIEWER = "swarm.tier.reviewer"

    QUEUE_DEBATE = "swarm.work.debate"
    QUEUE_PRODUCTION = "swarm.work.production"
    QUEUE_REVIEW = "swarm.work.review"

    DEBATES = "swarm.debates"  #: arguments, votes and outcomes

    RPC_BLACKBOARD = "swarm.rpc.blackboard"
    RPC_COST_TRACKER = "swarm.rpc.cost_tracker"
    RPC_MONITOR = "swarm.rpc.monitor"

    URGENT = frozenset({BROADCAST_CONTROL, BROADCAST_EMERGENCY})

    @staticmethod
    def agent_channel(agent_id: str) -> str:
        """The channel that one agent listens to."""
        return f"swarm.agent.{check_id('agent id', agent_id)}"

    @staticmethod
    def tier_channel(tier: str) -> str:
        """The channel of a tier: a role, or several that make one product."""
        return f"swarm.tier.{check_name('tier', str(tier))}"

    @staticmethod
    def tiers_of(role: str) -> tuple[str, ...]:
        """The tiers that an agent of *role* stands in: its own, and ``producer`` for those who make the product."""
        return (role, _TIERS[role]) if role in _TIERS else (role,)

    @staticmethod
    def queue(name: str) -> str:
        """The name of a work queue of your own."""
        return f"swarm.work.{check_name('queue', name)}"


def check_channel(name: str) -> str:
    """Return *name* if it can be a channel.

    Raises:
        InvalidInputError: it is empty, longer than 200, or holds a space or a brace.
    """
    if not isinstance(name, str) or not 0 < len(name) <= 200 or any(each in " {}\n\r\t" for each in name):
        raise InvalidInputError("channel", found=name, needed="1-200 characters without spaces and braces")
    return name
