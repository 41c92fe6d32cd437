"""``swarm bus`` and ``swarm queues``: what they show, what they change, and what they say to wrong words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import structlog
from given import until

from swarm_infrastructure.cli import main
from swarm_infrastructure.message_bus import Channels, Hub, MessageBus, TaskMessage, TaskQueues, Topics
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import RedisServer

pytestmark = pytest.mark.any_server

QUEUE = Channels.QUEUE_PRODUCTION
Swarm = Callable[..., tuple[int, str, str]]


@pytest.fixture
def swarm(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> Iterator[Swarm]:
    """Runs a command; gives its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("SWARM_ID", "test")

    def swarm(*words: str) -> tuple[int, str, str]:
        code = main(words)
        told = capsys.readouterr()
        return code, told.out, told.err

    yield swarm
    structlog.reset_defaults()  # each command configures the logs of its process


@pytest.fixture
def on_redis(redis_server: RedisServer) -> Callable[[Callable[[Store], Awaitable[Any]]], Any]:
    """Does something in a loop of its own, before or after a command."""

    def on_redis(work: Callable[[Store], Awaitable[Any]], *, empty: bool = False) -> Any:
        async def run() -> Any:
            async with Store(redis_server.url) as store:
                if empty:
                    await store.command("FLUSHALL")
                return await work(store)

        return asyncio.run(run())

    async def nothing(_: Store) -> None: ...

    on_redis(nothing, empty=True)
    return on_redis


async def given_tasks(store: Store) -> None:
    queues = TaskQueues(store, "test")
    await queues.enqueue_many(
        QUEUE, [TaskMessage(task_id=f"t{n}", task_type="script", max_retries=0) for n in range(3)]
    )
    for why in ("no sound", "no picture"):
        task = await queues.dequeue(QUEUE, "w", timeout_s=0)
        assert task is not None
        await queues.fail(task, why)
    await queues.close()


def test_without_queues_and_messages_it_says_so(swarm: Swarm, on_redis: Any) -> None:
    assert swarm("queues")[::2] == (0, "swarm: no work queue yet; the first task put into one makes it\n")
    assert swarm("bus", "history")[::2] == (0, "swarm: no messages\n")


def test_a_queue_is_listed_with_its_next_tasks_and_those_set_aside_which_can_be_redriven(
    swarm: Swarm, on_redis: Any
) -> None:
    on_redis(given_tasks)

    [row] = json.loads(swarm("queues", "list", "-o", "json")[1])
    assert row == {"queue": QUEUE, "ready": 1, "delayed": 0, "claimed": 0, "done": 0, "set_aside": 2}
    assert [each["task_id"] for each in json.loads(swarm("queues", "peek", QUEUE, "-o", "json")[1])] == ["t2"]
    aside = json.loads(swarm("queues", "aside", QUEUE, "-o", "json")[1])
    assert {each["task_id"]: each["why"] for each in aside} == {"t0": "no sound", "t1": "no picture"}
    assert "no picture" in swarm("queues", "aside", QUEUE)[1]

    assert swarm("queue", "redrive", QUEUE, "t1")[::2] == (0, f"swarm: 1 tasks of {QUEUE} are tried again\n")
    assert swarm("queues", "redrive", QUEUE, "--all")[::2] == (0, f"swarm: 1 tasks of {QUEUE} are tried again\n")
    assert {each["task_id"] for each in json.loads(swarm("queues", "peek", QUEUE, "-o", "json")[1])} == {
        "t0",
        "t1",
        "t2",
    }
    assert "script" in swarm("queues", "peek", QUEUE)[1]


def test_a_queue_does_not_get_into_the_way_of_the_board(swarm: Swarm, on_redis: Any) -> None:
    on_redis(given_tasks)

    assert QUEUE in swarm("status")[1]
    code, _, said = swarm("agents", "list")
    assert (code, "no board in namespace 'test'" in said) == (3, True)
    assert swarm("audit")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["queues", "peek", "nowhere"], f"QUEUE: found 'nowhere', needed one of namespace 'test': {QUEUE}"),
        (["queues", "redrive", QUEUE], "TASK: found 'none'"),
        (["queues", "redrive", QUEUE, "t0", "--all"], "TASK: found 'both'"),
        (["bus", "send", "note", "{"], "PAYLOAD: found '{', needed JSON"),
        (["bus", "send", "two words"], "Message: type"),
        (["bus", "send", "note", "--to", "tier:No!"], "tier"),
        (["bus", "history", "--count", "0"], "--count"),
    ],
)
def test_wrong_words_are_named_and_nothing_changes(swarm: Swarm, on_redis: Any, words: list[str], said: str) -> None:
    on_redis(given_tasks)

    code, out, err = swarm(*words)

    assert (code, out) == (2, "")
    assert said in err


def test_a_task_that_is_not_there_cannot_be_redriven(swarm: Swarm, on_redis: Any) -> None:
    on_redis(given_tasks)

    code, _, err = swarm("queues", "redrive", QUEUE, "t9")

    assert (code, "t9" in err) == (1, True)


def test_what_is_sent_is_heard_and_stands_in_the_history(swarm: Swarm, on_redis: Any) -> None:
    async def hear_while(work: Callable[[], Any], store: Store) -> tuple[Any, list[Any]]:
        hub, queues = Hub(store, "test"), TaskQueues(store, "test")
        async with MessageBus(hub, queues, "scout_1", role="scout") as bus:
            heard: list[Any] = []
            bus.on("note", lambda message: heard.append(message.payload))
            answer = await asyncio.to_thread(work)
            await until(lambda: heard)
        await hub.close()
        return answer, heard

    for to in ([], ["--to", "scout_1"], ["--to", "tier:scout"]):
        words = ["bus", "send", "note", '{"n": 1}', *to]
        (code, _, err), heard = on_redis(lambda store, words=words: hear_while(lambda: swarm(*words), store))
        assert (code, err, heard) == (0, "swarm: 1 process heard it\n", [{"n": 1}])

    assert swarm("bus", "send", "note")[2] == "swarm: nobody listens; who is there: swarm agents list\n"
    rows = json.loads(swarm("bus", "history", "note", "-o", "json")[1])
    assert [row["payload"] for row in rows] == [{}, {"n": 1}, {"n": 1}, {"n": 1}]
    assert '{"n": 1}' in swarm("bus", "history")[1]


# --- topics -----------------------------------------------------------------------------------------------------------


async def given_topic(store: Store) -> None:
    topic = await Topics(store, "test").open("lines", partitions=1)
    await topic.publish_many([{"n": n} for n in range(4)], keys=["a"] * 4)
    async with topic.consume("readers", max_attempts=1) as deliveries:
        bad = await anext(deliveries)
        await bad.fail("no sense in it")
        await (await anext(deliveries)).done()


def test_a_topic_is_listed_read_replayed_and_its_dead_letters_are_put_back(swarm: Swarm, on_redis: Any) -> None:
    assert swarm("topics")[2] == "swarm: no topic yet; the first message makes it\n"
    on_redis(given_topic)

    [row] = json.loads(swarm("topics", "list", "-o", "json")[1])
    assert row == {"topic": "lines", "partitions": 1, "messages": 4, "dead": 1, "groups": {"readers": 2}}
    assert "readers 2" in swarm("topics")[1]
    rows = json.loads(swarm("topics", "read", "lines", "--count", "2", "-o", "json")[1])
    assert [(each["key"], each["body"]) for each in rows] == [("a", '{"n":0}'), ("a", '{"n":1}')]
    assert '{"n":3}' in swarm("topic", "read", "lines")[1]
    assert len(json.loads(swarm("topics", "read", "lines", "--from", rows[1]["entry"], "-o", "json")[1])) == 3
    assert (
        swarm("topics", "read", "lines", "--from", "2999-01-01T00:00Z")[2] == "swarm: nothing in lines from there on\n"
    )

    [letter] = json.loads(swarm("topics", "dead", "lines", "-o", "json")[1])
    assert (letter["group"], letter["error"], letter["body"]) == ("readers", "no sense in it", '{"n":0}')
    assert "no sense in it" in swarm("topics", "dead", "lines")[1]
    assert swarm("topics", "redrive", "lines", letter["id"])[2] == "swarm: 1 messages of lines are tried again\n"
    assert swarm("topics", "redrive", "lines", "--all")[2] == "swarm: 0 messages of lines are tried again\n"

    said = swarm("topics", "replay", "lines", "readers", "--from", "earliest", "--yes")[2]
    assert said == "swarm: group readers of lines goes on from earliest: 5 messages are before it\n"
    assert swarm("topics", "trim", "lines")[2] == "swarm: 0 messages of lines are gone\n"
    assert swarm("topics", "drop-group", "lines", "readers", "--yes")[2] == "swarm: forgot group readers of lines\n"
    assert "no group" in swarm("topics")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["topics", "read", "nowhere"], "TOPIC: found 'nowhere', needed one of namespace 'test': lines"),
        (["topics", "read", "lines", "--from", "sometime"], "sometime"),
        (["topics", "read", "lines", "--from", "2026-01-01T00:00"], "a time with a zone"),
        (["topics", "redrive", "lines"], "LETTER: found 'none'"),
        (["topics", "drop-group", "lines", "nobody", "--yes"], "GROUP: found 'nobody', needed one of lines: readers"),
    ],
)
def test_wrong_words_about_topics_are_named(swarm: Swarm, on_redis: Any, words: list[str], said: str) -> None:
    on_redis(given_topic)

    code, out, err = swarm(*words)

    assert (code, out) == (2, "")
    assert said in err
