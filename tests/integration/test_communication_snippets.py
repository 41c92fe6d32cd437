"""The "Redis Communication Layer" part of the product document, as it is written there."""

# ruff: noqa: B018
# fmt: off
from __future__ import annotations

from typing import Any

from given import until

from swarm_infrastructure import Channels, Message, MessageType, Settings, SwarmInfrastructure, TaskMessage
from swarm_infrastructure.testing import RedisServer


async def test_the_calls_of_the_document_run_as_written(redis_server: RedisServer, capsys: Any, store: Any) -> None:
    async with SwarmInfrastructure(settings=Settings(redis_url=redis_server.url, namespace="doc")) as swarm:
        message_bus = swarm.bus_of("writer_1", "script_writer")
        await message_bus.start()

        MessageType.TASK_ASSIGN      # Task assignment
        MessageType.TASK_COMPLETE    # Task completion
        MessageType.DEBATE_INVITE    # Debate invitation
        MessageType.DEBATE_VOTE      # Consensus vote
        MessageType.PROD_START       # Production start
        MessageType.HEARTBEAT        # Agent heartbeat
        MessageType.EMERGENCY        # Emergency broadcast

        # Broadcast channels
        Channels.BROADCAST_ALL        # All agents
        Channels.BROADCAST_CONTROL    # Control messages
        Channels.BROADCAST_EMERGENCY  # Emergency alerts

        # Tier channels
        Channels.TIER_SCOUT          # Scout agents
        Channels.TIER_ANALYST        # Analyst agents
        Channels.TIER_DEBATER        # Debater agents
        Channels.TIER_PRODUCER       # Producer agents

        # Direct agent channels
        Channels.agent_channel("agent_1")  # Direct to agent_1

        # Publish message
        message = Message.create(
            msg_type=MessageType.TASK_ASSIGN,
            sender="analyst_1",
            recipient="writer_1",
            payload={"task": "write_script", "news_id": "news_001"}
        )
        await message_bus.send_to_agent("writer_1", message)

        # Subscribe to messages
        async def handle_task(msg: Message):
            print(f"Received task: {msg.payload}")

        message_bus.on(MessageType.TASK_ASSIGN, handle_task)

        await message_bus.send_to_agent("writer_1", message)  # the first came before anybody listened for its type
        shown = ""

        def printed() -> bool:
            nonlocal shown
            shown += capsys.readouterr().out
            return "Received task" in shown

        await until(printed)
        assert "Received task: {'task': 'write_script', 'news_id': 'news_001'}" in shown

        # Enqueue task
        task = TaskMessage(
            task_id="task_001",
            task_type="script_generation",
            parameters={"news_id": "news_001"},
            estimated_tokens=2000
        )
        await message_bus.enqueue_task(Channels.QUEUE_PRODUCTION, task)

        # Dequeue task
        task = await message_bus.dequeue_task(Channels.QUEUE_PRODUCTION)

        assert task is not None
        assert (task.task_id, task.parameters, task.estimated_tokens) == ("task_001", {"news_id": "news_001"}, 2000)
        assert await message_bus.get_queue_length(Channels.QUEUE_PRODUCTION) == 0
        await message_bus.complete_task(task)
        await message_bus.stop()
