"""What outlives a crash: a worker dies in the middle of an item, and the next one pays for nothing and does nothing twice.

    python examples/recovering.py

No keys, no Docker, no network: the model is a script, and the worker that dies is a process of its own.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from swarm_infrastructure import (
    BaseAgent,
    CircuitBreakerConfig,
    CircuitOpenError,
    Claims,
    Item,
    Outcome,
    Submission,
    Swarm,
    SwarmInfrastructure,
    Work,
    job_board,
)
from swarm_infrastructure.testing import FunctionLLM

BOARD = job_board("recovering", "videos", lease_s=1.0)
ONCE = Path(os.environ.get("SWARM_DATA_DIR", ".swarm")) / "has-crashed"


class Producer(BaseAgent):
    """Writes a script, renders it, and dies between the two the first time."""

    claims = Claims("videos")

    async def process(self, item: Item, work: Work) -> Outcome:
        """Ask, render, remember; each of them once for an item."""
        script = await work.ask("script_final", f"Write about {item.payload['topic']}.")
        print(f"script {'from the record' if script.recorded else 'paid for'}: ${script.cost:.6f}", flush=True)
        video = await work.step("render", render, script.text)
        print(f"video {video['file']}", flush=True)
        await work.checkpoint("rendered", video)
        if not ONCE.exists():
            ONCE.parent.mkdir(parents=True, exist_ok=True)
            ONCE.touch()
            print("the worker dies", flush=True)
            os._exit(1)
        return work.done(video)


async def render(script: str, *, idempotency_key: str) -> dict[str, str]:
    """Called once for a script, however often its worker dies after that; the key is the same in every attempt."""
    print(f"rendering {len(script)} letters as {idempotency_key.split(':')[0]}", flush=True)
    return {"file": "rivers.mp4"}


async def watch(swarm: SwarmInfrastructure) -> None:
    """Feed one item, wait for it, run it again as a replay, and show a breaker."""
    board = swarm.blackboard
    await board.submit(Submission(id="rivers", section="videos", payload={"topic": "rivers"}))
    await _done(swarm, ["rivers"])
    kinds = [event.kind for event in await board.history("rivers")]
    checkpoint = await swarm.resume_from_checkpoint("rivers")
    print("history:", ", ".join(kinds), "| checkpoint:", checkpoint.stage if checkpoint else None, flush=True)

    copy = await swarm.failure_recovery.steps.replay(board, "rivers", copy_id="rivers-again")
    await _done(swarm, [copy])
    print("replayed at no cost:", (await board.get(copy)).result, flush=True)

    breaker = swarm.failure_recovery.get_circuit_breaker("voice", CircuitBreakerConfig(failure_threshold=2))
    for _ in range(3):
        try:
            await breaker.call(speak, "rivers")
        except ConnectionError:
            print("the voice service is down", flush=True)
        except CircuitOpenError:
            print("nobody calls it any more", flush=True)
    await swarm.failure_recovery.breaker_states.close("voice")


async def speak(text: str) -> bytes:
    """A service that is down."""
    raise ConnectionError("no route to the voice service")


async def _done(swarm: SwarmInfrastructure, ids: Sequence[str]) -> None:
    async for _ in swarm.blackboard.follow("0-0"):  # each event may have been the last one
        if all(item is not None and item.status == "done" for item in await swarm.blackboard.find_many(ids)):
            return


if __name__ == "__main__":
    if "SWARM_WORKER" not in os.environ:  # not a worker of ours, which finds these as they are
        os.environ["SWARM_ID"] = f"recovering-{secrets.token_hex(3)}"  # so that runs don't meet, however they ended
        ONCE.unlink(missing_ok=True)
    model = FunctionLLM(lambda request: "Rivers begin as rain.")
    Swarm([Producer], board=BOARD, llm=model).run(processes=2, watch=watch)
