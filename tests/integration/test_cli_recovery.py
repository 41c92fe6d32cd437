"""What the command line shows of failures, and what it changes: breakers, escalations, checkpoints, steps, replays."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from test_cli_bus import Swarm, on_redis, swarm

from swarm_infrastructure import Submission, job_board
from swarm_infrastructure.blackboard import Blackboard
from swarm_infrastructure.failure_recovery import FailureRecovery
from swarm_infrastructure.failure_recovery.steps import step_key
from swarm_infrastructure.store import Store

pytestmark = pytest.mark.any_server

__all__ = ["on_redis", "swarm"]  # fixtures


def given(on_redis: Any, work: Any) -> Any:
    async def do(store: Store) -> Any:
        async with Blackboard(store, job_board("jobs"), namespace="test") as board:
            return await work(board, FailureRecovery(board))

    return on_redis(do)


async def nothing(board: Blackboard, recovery: FailureRecovery) -> None: ...


def test_breakers_are_listed_opened_and_closed(swarm: Swarm, on_redis: Any) -> None:
    given(on_redis, nothing)
    assert swarm("breakers") == (0, "", "swarm: every backend works, as far as anybody has noticed\n")
    assert swarm("breakers", "open", "runway", "--for", "90")[0] == 0
    code, out, _ = swarm("breakers", "--output", "json")
    [row] = json.loads(out)
    assert (code, row["name"], row["state"], 80 < row["wait_s"] <= 90) == (0, "runway", "open", True)
    assert re.search(r"in (90|8\d) s", swarm("breakers", "list")[1])
    assert swarm("breakers", "close", "runway")[2] == "swarm: closed runway\n"
    assert swarm("breakers", "close", "runway")[2] == "swarm: runway was closed already\n"
    assert swarm("breakers", "open", "two words")[0] == 2


def test_what_waits_for_a_person_is_listed_until_it_was_seen_to(swarm: Swarm, on_redis: Any) -> None:
    async def escalate(board: Blackboard, recovery: FailureRecovery) -> None:
        await recovery.escalate("story-7", "no rights to the picture", agent_id="designer-1")

    given(on_redis, escalate)
    _, out, _ = swarm("escalations")
    assert "story-7" in out
    assert "no rights to the picture" in out
    code, out, err = swarm("failures")
    assert (code, out) == (0, "")
    assert "the swarm is failing; waiting for a person: story-7" in err
    assert swarm("escalations", "resolve", "story-7") == (0, "", "swarm: resolved story-7\n")
    code, _, err = swarm("escalations", "resolve", "story-7")
    assert (code, "does not wait for a person" in err) == (1, True)


def test_failures_come_with_the_health_of_the_swarm(swarm: Swarm, on_redis: Any) -> None:
    async def fail(board: Blackboard, recovery: FailureRecovery) -> None:
        await recovery.record_failure("llm_error", "ada", "t1", "no answer")
        await recovery.record_failure("network_error", "bob", "t2", "reset")

    given(on_redis, fail)
    code, out, _ = swarm("failures", "--agent", "ada", "--output", "json")
    told = json.loads(out)
    assert (code, [row["error"] for row in told["failures"]], told["health"]["status"]) == (
        0,
        ["no answer"],
        "degraded",
    )
    assert swarm("failures")[1].index("reset") < swarm("failures")[1].index("no answer")


def test_checkpoints_are_listed_shown_and_forgotten(swarm: Swarm, on_redis: Any) -> None:
    async def keep(board: Blackboard, recovery: FailureRecovery) -> None:
        await recovery.create_checkpoint("video_001", "script_written", {"script": "Once"})
        await recovery.create_checkpoint("video_001", "voiced", {"file": "a.wav"})

    given(on_redis, keep)
    assert [row["stage"] for row in json.loads(swarm("checkpoints", "-o", "json")[1])] == ["script_written", "voiced"]
    assert json.loads(swarm("checkpoints", "show", "video_001")[1])["data"] == {"file": "a.wav"}
    _, out, _ = swarm("checkpoints", "show", "video_001", "--stage", "script_written")
    assert json.loads(out)["data"] == {"script": "Once"}
    code, _, err = swarm("checkpoints", "show", "video_001", "--stage", "cut")
    assert (code, "no checkpoint of stage 'cut'" in err) == (1, True)
    assert swarm("checkpoints", "delete", "video_001", "--yes")[0] == 0
    assert swarm("checkpoints", "delete", "video_001", "--yes")[0] == 1
    assert swarm("checkpoints") == (0, "", "swarm: no checkpoints\n")


def test_steps_are_shown_and_an_item_is_replayed_from_one(swarm: Swarm, on_redis: Any) -> None:
    async def work(board: Blackboard, recovery: FailureRecovery) -> None:
        await board.submit(Submission(id="a", section="jobs", payload={"n": 1}))
        [claimed] = await board.claim("jobs", "ada")
        await recovery.steps.record(claimed.item.id, step_key("draft", [], {}), b'{"text":"hi"}', claim=claimed.claim)
        await board.complete(claimed.claim)

    given(on_redis, work)
    [row] = json.loads(swarm("items", "steps", "a", "-o", "json")[1])
    assert (row["step"], row["stage"], row["answer"]) == ("draft", "jobs/waiting/", '{"text":"hi"}')
    code, _, err = swarm("item", "replay", "a", "--from", "draft")
    assert (code, err) == (0, "swarm: a is replayed as a~replay-1; follow it: swarm items show a~replay-1\n")
    assert json.loads(swarm("items", "show", "a~replay-1", "-o", "json")[1])["payload"] == {"n": 1}
    code, _, err = swarm("items", "replay", "a", "--from", "nowhere")
    assert (code, "one of jobs/waiting, draft" in err) == (2, True)
    code, _, err = swarm("items", "replay", "nobody")
    assert (code, "nothing on record" in err) == (2, True)
    assert swarm("items", "steps", "nobody") == (0, "", "swarm: nothing is on record for nobody\n")


@pytest.mark.parametrize(
    "words", [["breakers"], ["escalations"], ["failures"], ["checkpoints"], ["items", "steps", "a"]]
)
def test_without_a_board_it_says_how_to_get_one(swarm: Swarm, on_redis: Any, words: list[str]) -> None:
    code, _, err = swarm(*words)
    assert (code, "run a swarm first" in err) == (3, True)
