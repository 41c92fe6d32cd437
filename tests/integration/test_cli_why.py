"""``swarm why`` and the lines of ``swarm audit``: what they show, their exit codes, and what they say to wrong words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import structlog

from swarm_infrastructure.blackboard import Blackboard, Submission, job_board
from swarm_infrastructure.cli import main
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import RedisServer

pytestmark = pytest.mark.any_server

Swarm = Callable[..., tuple[int, str, str]]
OnBoard = Callable[[Callable[[Blackboard], Awaitable[Any]]], Any]


@pytest.fixture
def swarm(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> Iterator[Swarm]:
    """Runs a command; gives its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("SWARM_ID", "why")

    def swarm(*words: str) -> tuple[int, str, str]:
        code = main(words)
        told = capsys.readouterr()
        return code, told.out, told.err

    yield swarm
    structlog.reset_defaults()  # each command configures the logs of its process


@pytest.fixture
def on_board(redis_server: RedisServer) -> OnBoard:
    """Does something with a board in a loop of its own; the first time on an empty server."""

    def on_board(work: Callable[[Blackboard], Awaitable[Any]], *, name: str = "jobs", empty: bool = False) -> Any:
        async def run() -> Any:
            async with Store(redis_server.url) as store:
                if empty:
                    await store.command("FLUSHALL")
                async with Blackboard(store, job_board(name, "jobs"), namespace="why") as board:
                    return await work(board)

        return asyncio.run(run())

    async def given(board: Blackboard) -> None:
        await board.submit(Submission(id="a", section="jobs", payload={}))

    on_board(given, empty=True)
    return on_board


def test_why_names_the_reason_and_the_next_step_and_ends_with_1_if_the_item_stands_still(
    swarm: Swarm, on_board: OnBoard
) -> None:
    code, out, err = swarm("why", "a")

    assert (code, err) == (1, "")
    assert out.startswith("a on board jobs in jobs/waiting, for ")
    assert "nobody_claims  no agent is registered on this board" in out
    assert "→ run an agent with claims = Claims('jobs'): swarm run TARGET" in out


def test_why_ends_with_0_for_what_moves(swarm: Swarm, on_board: OnBoard) -> None:
    async def claim(board: Blackboard) -> None:
        await board.claim("jobs", "ann", lease_s=600)

    on_board(claim)

    code, out, _ = swarm("why", "a", "-o", "json")

    assert code == 0
    [told] = json.loads(out)
    assert (told["stuck"], told["reasons"][0]["kind"], told["reasons"][0]["facts"]["agent"]) == (
        False,
        "worked_on",
        "ann",
    )


def test_why_finds_the_item_on_whichever_board_it_is(swarm: Swarm, on_board: OnBoard) -> None:
    async def submit(board: Blackboard) -> None:
        await board.submit(Submission(id="b", section="jobs", payload={}))

    on_board(submit, name="other")

    _, out, _ = swarm("why", "b", "-o", "jsonl")
    assert [json.loads(line)["board"] for line in out.splitlines()] == ["other"]
    code, out, _ = swarm("why", "nobody", "-o", "json")
    assert (code, [told["reasons"][0]["kind"] for told in json.loads(out)]) == (1, ["missing", "missing"])


def test_why_without_an_item_tells_the_standstills_of_each_board(swarm: Swarm, on_board: OnBoard) -> None:
    code, out, _ = swarm("why")
    assert code == 1
    assert out.startswith("jobs: 1 standstill\n")
    assert "starved  jobs/waiting  1 ready item, the oldest (a) for " in out

    code, out, _ = swarm("why", "-o", "json")
    [board] = json.loads(out)
    assert (code, board["board"], board["standstills"][0]["kind"]) == (1, "jobs", "starved")

    async def delete(board: Blackboard) -> None:
        await board.delete("jobs", "a")

    on_board(delete)
    assert swarm("why")[:2] == (0, "jobs: nothing stands still\n")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["why", "no id"], 2, "item id: found 'no id'"),
        (["why", "a", "--board", "none"], 2, "--board: found 'none'"),
        (["why", "a", "b"], 2, "unexpected extra argument"),
        (["audit", "--board", "none"], 2, "--board: found 'none'"),
    ],
)
def test_wrong_words_are_one_line(swarm: Swarm, on_board: OnBoard, words: list[str], code: int, said: str) -> None:
    found, out, err = swarm(*words)

    assert (found, out) == (code, "")
    assert said in err
    assert err.startswith("swarm: ")
    assert err.count("\n") == 1


def test_no_redis_and_no_board_say_what_to_do(swarm: Swarm, on_board: OnBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_ID", "nowhere")
    code, _, err = swarm("why", "a")
    assert code == 3
    assert "no board in namespace 'nowhere'" in err

    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    code, _, err = swarm("why")
    assert code == 4
    assert "does not answer" in err


def test_audit_has_a_line_for_each_invariant_and_1_for_a_breach(swarm: Swarm, on_board: OnBoard) -> None:
    code, out, _ = swarm("audit")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "jobs: 1 items, 1 events: every invariant holds"
    assert [line.split()[0] for line in lines[2:]] == [f"I{n}" for n in range(1, 21)] + ["D"]
    assert swarm("audit", "--at-rest")[0] == 0

    async def claim(board: Blackboard) -> None:
        await board.claim("jobs", "ann", lease_s=600)

    on_board(claim)
    assert swarm("audit")[0] == 0
    code, out, _ = swarm("audit", "--at-rest")
    assert code == 1
    assert "I20   broken 1×" in out
    assert "'ann' holds 1 claim" in out
    code, out, _ = swarm("audit", "--at-rest", "-o", "json")
    [told] = json.loads(out)
    assert [row["state"] for row in told["invariants"] if row["invariant"] == "I20"] == ["broken"]
