"""The product document's snippets on failure recovery, as they are written there."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from given import until

from swarm_infrastructure import (
    BaseAgent,
    Checkpoint,
    CircuitOpenError,
    FailureRecovery,
    RetryPolicy,
    Settings,
    SwarmInfrastructure,
    job_board,
)
from swarm_infrastructure.agents import Worker


@pytest.fixture
async def swarm(redis_server: Any) -> AsyncIterator[SwarmInfrastructure]:
    settings = Settings(redis_url=redis_server.url, namespace="t" + secrets.token_hex(6), shutdown_grace_s=2)
    async with SwarmInfrastructure(job_board("jobs"), settings) as swarm:
        yield swarm


@pytest.fixture
def failure_recovery(swarm: SwarmInfrastructure) -> FailureRecovery:
    return swarm.failure_recovery


class Service:
    """Draws pictures, unless it is down."""

    def __init__(self, name: str, failures: int = 0) -> None:
        self.name, self.failures, self.calls = name, failures, 0

    async def generate(self, prompt: str) -> str:
        self.calls += 1
        if self.failures:
            self.failures -= 1
            raise ConnectionError("down")
        return f"{self.name}: {prompt}"


async def test_retry_with_exponential_backoff(
    failure_recovery: FailureRecovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failure_recovery._random, "uniform", lambda low, high: 0.0)  # so that nobody waits
    runway = Service("runway", failures=3)

    @failure_recovery.with_retry(
        policy=RetryPolicy(
            max_retries=3,
            base_delay=1.0,
            exponential_base=2.0
        )
    )  # fmt: skip
    async def generate_visual(prompt: str):
        return await runway.generate(prompt)

    assert await generate_visual("a bridge") == "runway: a bridge"
    assert runway.calls == 4


async def test_circuit_breaker(failure_recovery: FailureRecovery) -> None:
    runway, fallback_provider, prompt = Service("runway", failures=99), Service("heygen"), "a bridge"
    results = []
    for _ in range(8):
        # Create circuit breaker for external service
        cb = failure_recovery.get_circuit_breaker("runway")

        # Use with protection
        try:
            result = await cb.call(runway.generate, prompt)
        except CircuitOpenError:
            # Circuit is open, use fallback
            result = await fallback_provider.generate(prompt)
        except ConnectionError:
            continue  # one of the failures that open it
        results.append(result)

    assert results == ["heygen: a bridge"] * 3
    assert (runway.calls, fallback_provider.calls) == (5, 3)


async def test_fallback_agents(swarm: SwarmInfrastructure, failure_recovery: FailureRecovery) -> None:
    class StockImages(BaseAgent):
        async def _process_cycle(self) -> None:
            await asyncio.sleep(0)

    worker = Worker(swarm, [StockImages("stock_image_agent", "stock_images", swarm)])
    task = asyncio.create_task(worker.run(signals=False))

    async def there() -> bool:
        worker.runners[0].status = "idle"
        found = await swarm.blackboard.agents.find("stock_image_agent")
        return found is not None and found.status.value == "idle"

    await until(there)

    # Register fallback chain
    failure_recovery.register_fallback(
        "visual_designer",
        ["visual_designer_backup", "visual_designer_simple", "stock_image_agent"]
    )  # fmt: skip

    # Spawn fallback on failure
    fallback_id = await failure_recovery.spawn_fallback_agent(
        failed_agent_id="visual_designer_1",
        agent_role="visual_designer",
        task_id="task_001",
        task_data={"prompt": "news scene"}
    )  # fmt: skip

    worker.tell_to_stop()
    await task
    assert fallback_id == "stock_image_agent"


async def test_checkpoint_and_resume(failure_recovery: FailureRecovery) -> None:
    script_content, writer_state = "Once upon a time", {"tone": "calm"}
    continued: list[Checkpoint] = []

    async def continue_production(checkpoint: Checkpoint) -> None:
        continued.append(checkpoint)

    # Create checkpoint
    await failure_recovery.create_checkpoint(
        task_id="video_001",
        stage="script_written",
        data={"script": script_content},
        agent_states={"writer": writer_state},
        ttl_hours=24
    )  # fmt: skip

    # Resume from checkpoint
    checkpoint = await failure_recovery.resume_from_checkpoint("video_001")
    if checkpoint:
        # Continue from checkpoint.stage
        await continue_production(checkpoint)

    [found] = continued
    assert (found.stage, found.data, found.agent_states) == (
        "script_written", {"script": script_content}, {"writer": writer_state},
    )  # fmt: skip
    assert await failure_recovery.resume_from_checkpoint("video_002") is None


async def test_the_facade_has_the_same_doors(swarm: SwarmInfrastructure) -> None:
    await swarm.create_checkpoint("video_001", "script_written", {"script": "x"})
    found = await swarm.resume_from_checkpoint("video_001")
    assert found is not None
    assert found.stage == "script_written"
