"""What became of every article of a run: read from the board alone, so that crashes and restarts can't falsify it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from swarm_infrastructure import Blackboard, BlackboardSection, ContentStatus, Item, SwarmInfrastructure

from .board import BOARD, SOURCES

__all__ = ["Costs", "Tally", "unfinished"]

LIVE = [
    s
    for s in BlackboardSection
    if s not in (BlackboardSection.PUBLISHED, BlackboardSection.ARCHIVE, BlackboardSection.AGENT_STATE)
]


@dataclass(frozen=True, slots=True)
class Costs:
    """Nano-dollars by role and by tier."""

    total: int = 0
    by_role: dict[str, int] = field(default_factory=dict)
    by_tier: dict[str, int] = field(default_factory=dict)

    @classmethod
    async def take(cls, swarm: SwarmInfrastructure) -> Costs:
        """What was spent on this board so far."""
        counters = await swarm.cost_manager.ledger.counters()

        def under(prefix: str) -> dict[str, int]:
            return {name.removeprefix(prefix): row[0] for name, row in counters.items() if name.startswith(prefix)}

        return cls(counters.get("t|swarm", (0,))[0], under("t|role:"), under("t|tier:"))

    def __sub__(self, other: Costs) -> Costs:
        def less(now: dict[str, int], then: dict[str, int]) -> dict[str, int]:
            return {name: nano - then.get(name, 0) for name, nano in now.items() if nano != then.get(name, 0)}

        return Costs(self.total - other.total, less(self.by_role, other.by_role), less(self.by_tier, other.by_tier))

    def as_dict(self) -> dict[str, Any]:
        """In dollars."""
        return {
            "total": self.total / 1e9,
            "by_agent": {name: nano / 1e9 for name, nano in self.by_role.items()},
            "by_tier": {name: nano / 1e9 for name, nano in self.by_tier.items()},
        }


@dataclass(slots=True)
class Tally:
    """The account of one run: published + duplicates + rejected + failed = read."""

    read: int = 0
    published: dict[str, str] = field(default_factory=dict)  #: id → headline
    duplicates: dict[str, str] = field(default_factory=dict)  #: id or source#entry → id of the original
    near: int = 0  #: of the duplicates: near-copies
    known: int = 0  #: of the duplicates: the same text of the same outlet, met before
    rejected: dict[str, str] = field(default_factory=dict)  #: id or source#entry → why
    failed: dict[str, str] = field(default_factory=dict)  #: id → the last error
    sources: int = 0
    unread: dict[str, str] = field(default_factory=dict)  #: source → why it could not be read
    items: dict[str, Item] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)  #: of this run

    @classmethod
    async def take(cls, blackboard: Blackboard, source_ids: list[str]) -> Tally:
        """The account of the run that began with these sources."""
        tally = cls(sources=len(source_ids))
        for source in await blackboard.find_many(source_ids):
            if source is None:
                continue
            if source.status != "read" or source.result is None:
                errors = await blackboard.errors(source.id)
                tally.unread[source.payload["location"]] = errors[-1]["error"] if errors else "not read"
                continue
            told = source.result
            tally.read += told["read"]
            tally.duplicates |= told["known"]
            tally.known += len(told["known"])
            tally.rejected |= told["malformed"]
            for item_id, item in zip(told["stories"], await blackboard.find_many(told["stories"]), strict=True):
                await tally._count(blackboard, item_id, item)
        return tally

    async def _count(self, blackboard: Blackboard, item_id: str, item: Item | None) -> None:
        if item is None:
            self.failed[item_id] = "deleted"
            return
        self.items[item_id] = item
        told = item.payload
        if item.section == BlackboardSection.PUBLISHED:
            self.published[item_id] = str(told["title"])
        elif told.get("duplicate_of"):
            self.duplicates[item_id] = str(told["duplicate_of"])
            self.near += 1
        elif item.status in (ContentStatus.ARCHIVED, ContentStatus.REJECTED):
            self.rejected[item_id] = str(told.get("rejected_because", ""))
        else:
            errors = await blackboard.errors(item_id)
            self.failed[item_id] = errors[-1]["error"] if errors else f"left in {item.section}/{item.status}"

    def copies_of(self, item_id: str) -> list[Item]:
        """Near-copies that were linked to a story in this run."""
        return [self.items[each] for each, first in self.duplicates.items() if first == item_id and each in self.items]

    def as_dict(self, seconds: float) -> dict[str, Any]:
        """The summary as JSON data."""
        return {
            "read": self.read,
            "published": len(self.published),
            "duplicates": len(self.duplicates),
            "rejected": len(self.rejected),
            "failed": len(self.failed),
            "seconds": round(seconds, 3),
            "near_copies": self.near,
            "known": self.known,
            "cost_usd": self.costs.as_dict(),
            "sources": self.sources,
            "unread": self.unread,
            "ids": {
                "read": [*self.published, *self.duplicates, *self.rejected, *self.failed],
                "published": list(self.published),
                "duplicates": self.duplicates,
                "rejected": self.rejected,
                "failed": self.failed,
            },
        }


async def unfinished(blackboard: Blackboard) -> int:
    """How many sources and stories are still on their way."""
    stats = await blackboard.get_all_stats()
    resting = {*BOARD.final, BOARD.quarantine}
    live: int = sum(n for section in LIVE for status, n in stats[section]["by_status"].items() if status not in resting)
    sources: int = sum(n for status, n in stats[SOURCES]["by_status"].items() if status not in resting)
    return live + sources
