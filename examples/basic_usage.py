"""The board's calls, one after another: what the product document shows, on a private Redis.

python examples/basic_usage.py
"""

import asyncio

from swarm_infrastructure import BlackboardSection, ContentStatus, NewsItem, SwarmError, SwarmInfrastructure, TraceType


async def main() -> None:
    """Write, claim, complete, and look at what happened."""
    async with SwarmInfrastructure() as swarm:
        blackboard = swarm.blackboard
        news = NewsItem(
            id="news_001",
            title="Harbour bridge reopens",
            content="The bridge over the harbour reopened on Monday after two years of repairs.",
            source="Harbour Courier",
        )
        await blackboard.delete(BlackboardSection.CONSENSUS, news.id)  # so that the example can be run again

        # Written once: the same text is a duplicate, whatever id it comes with.
        print("accepted:", await blackboard.write(BlackboardSection.RAW_FEED, news.id, news.to_dict()))
        print("again:   ", await blackboard.write(BlackboardSection.RAW_FEED, "news_002", news.to_dict()))

        # An agent claims it; nobody else can until it is completed, or the agent's lease ends.
        await swarm.register_agent("scout_1", role="scout", capabilities=["screening"])
        trace_id = swarm.start_trace(TraceType.AGENT_DECISION)
        section = BlackboardSection.RAW_FEED
        print("claimed: ", await swarm.claim_task("scout_1", section, news.id))
        print("by two:  ", await swarm.claim_task("scout_2", section, news.id))
        await swarm.complete_task("scout_1", section, news.id, result={"worth_it": True})
        swarm.end_trace(trace_id, "success")

        # It went where its section leads. Only one agent at a time may change it while this lock is held.
        async with blackboard.acquire_lock(news.id, "editor_1"):
            await blackboard.update(BlackboardSection.DEBATE_QUEUE, news.id, {"topics": ["bridges", "repairs"]})
        waiting = await blackboard.query_by_status(BlackboardSection.DEBATE_QUEUE, ContentStatus.DEBATING)
        print("debating:", [(item["id"], item["topics"]) for item in waiting])

        # A step that the board does not allow is refused, and nothing has changed.
        try:
            await blackboard.transition_status(BlackboardSection.DEBATE_QUEUE, news.id, ContentStatus.PUBLISHED)
        except SwarmError as error:
            print("refused: ", error)

        await swarm.claim_task("analyst_1", BlackboardSection.DEBATE_QUEUE, news.id)
        await swarm.complete_task(
            "analyst_1", BlackboardSection.DEBATE_QUEUE, news.id, move_to=BlackboardSection.CONSENSUS
        )
        for event in await blackboard.history(news.id):
            print(f"  {event.version}. {event.kind:<9} {event.before or '-'} → {event.after} {event.agent}")
        await swarm.unregister_agent("scout_1")


if __name__ == "__main__":
    asyncio.run(main())
