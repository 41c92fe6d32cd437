"""Two ways to write an agent, on the same board.

``Screener`` overrides ``process``: the runner finds work, keeps the lease, and ends the claim. ``MyAgent`` overrides
``_process_cycle`` and does all of that by hand.

python examples/agent_implementation.py
"""

from typing import Any

from swarm_infrastructure import (
    BaseAgent,
    BlackboardSection,
    Claims,
    ContentStatus,
    NewsItem,
    Outcome,
    Submission,
    Swarm,
    SwarmInfrastructure,
    TraceType,
    Work,
)


class Screener(BaseAgent):
    """Drops what is too short to be news."""

    claims = Claims(BlackboardSection.DEBATE_QUEUE, batch=4)

    async def process(self, item: NewsItem, work: Work) -> Outcome:
        """Look at one item."""
        if len(item.content.split()) < 5:
            return work.move(BlackboardSection.ARCHIVE, ContentStatus.ARCHIVED, reason="too short")
        return work.move(BlackboardSection.CONSENSUS, patch={"angle": item.content.split(".")[0]})


class MyAgent(BaseAgent):
    """Finds its work by itself."""

    def __init__(self, agent_id: str, swarm: SwarmInfrastructure) -> None:
        super().__init__(
            agent_id=agent_id,
            role="my_role",
            swarm=swarm,
            capabilities=["capability_1", "capability_2"],
        )

    async def _process_cycle(self) -> None:
        items = await self.swarm.blackboard.query_by_status(
            section=BlackboardSection.RAW_FEED,
            status=ContentStatus.PENDING,
        )
        for item in items:
            if await self.swarm.claim_task(
                agent_id=self.agent_id,
                section=BlackboardSection.RAW_FEED,
                item_id=item["id"],
            ):
                trace_id = self.swarm.start_trace(TraceType.AGENT_DECISION)
                try:
                    result = await self._process_item(item)
                    await self.swarm.complete_task(self.agent_id, BlackboardSection.RAW_FEED, item["id"], result)
                    self.swarm.end_trace(trace_id, "success")
                except Exception as e:
                    await self.swarm.fail_task(self.agent_id, BlackboardSection.RAW_FEED, item["id"], error=e)
                    self.swarm.end_trace(trace_id, "error")

    async def _process_item(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"words": len(item["content"].split())}


STORIES = {
    "story_1": (
        "Night trains return",
        "Night trains between the coast and the capital run again from May. Tickets are on sale.",
    ),
    "story_2": ("Weather", "Sunny."),
}


async def watch(swarm: SwarmInfrastructure) -> None:
    """Put two stories on the board, follow them to their ends, and clean up."""
    board = swarm.blackboard
    items = [
        NewsItem(id=story, title=title, content=content, source="Northern Ledger")
        for story, (title, content) in STORIES.items()
    ]
    await board.submit(*(Submission(id=item.id, section=BlackboardSection.RAW_FEED, payload=item) for item in items))
    left = set(STORIES)
    async for event in board.follow("0-0"):
        if event.item in left:
            print(f"{event.item}: {event.kind} → {event.after}")
            if event.after.startswith(("archive/", "consensus/consensus_reached")):
                left.remove(event.item)
                await board.delete(event.after.split("/")[0], event.item)
        if not left:
            return


if __name__ == "__main__":
    Swarm([MyAgent, Screener]).run(watch=watch)
