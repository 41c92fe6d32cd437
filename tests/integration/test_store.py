"""The store: servers that can't carry a board are named, and a server that goes away and comes back costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from given import Connect, OpenBoard, given_claim, given_item, given_items, in_time, snapshot

from swarm_infrastructure.blackboard import NEWS, Blackboard, Board, Section, Submission, job_board
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.errors import (
    BoardMismatchError,
    ConfigurationError,
    LibraryMismatchError,
    SectionFullError,
    ServerUnfitError,
    StoreUnavailableError,
    VersionConflictError,
)
from swarm_infrastructure.store import Library, Store, assemble, without_password
from swarm_infrastructure.testing import ManualClock, RedisServer

Serve = Callable[..., RedisServer]


@pytest.fixture
def serve(request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Starts servers of the test's own: ``server = serve(persist=True, options={...})``."""
    servers: list[RedisServer] = []

    def serve(**options: Any) -> RedisServer:
        servers.append(RedisServer(request.config.getoption("--redis-kind"), **options).start())
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()


@pytest.fixture
async def lasting(serve: Serve) -> RedisServer:
    """A server that loses nothing when it is killed."""
    return serve(persist=True, options={"appendfsync": "always"})


# --- servers that can't be used ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", "localhost:6379", "http://localhost:6379", "redis://localhost:port", "redis://[::1"]
)
async def test_a_url_that_is_none_is_named(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"redis://, rediss:// or unix://"):
        Store(url)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "unix:///nonexistent/socket", "redis://nobody.invalid:6379"])
async def test_a_server_that_is_not_there_is_named_within_the_time_allowed(url: str) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()

    with pytest.raises(StoreUnavailableError, match="swarm doctor") as error:
        async with Store(url, timeout_s=1, retry_s=0.2):
            pytest.fail("nobody is there")

    assert error.value.server == url
    assert loop.time() - started < 3


async def test_something_that_is_not_redis_is_named() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(ServerUnfitError, match="REDIS_URL"):
            async with Store(f"redis://127.0.0.1:{port}", retry_s=0.2):
                pytest.fail("that was no Redis")


async def test_a_server_that_never_answers_is_given_up_in_time() -> None:
    writers = []

    async def keep_silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(keep_silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(StoreUnavailableError):
            async with asyncio.timeout(5):
                async with Store(f"redis://127.0.0.1:{port}", timeout_s=0.1, retry_s=0.2):
                    pytest.fail("it never answered")
        for writer in writers:
            writer.close()


async def test_a_server_that_evicts_keys_is_refused(serve: Serve, connect: Connect) -> None:
    server = serve(options={"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"})

    with pytest.raises(ServerUnfitError, match="maxmemory-policy noeviction"):
        await connect(server.url)


async def test_a_wrong_password_is_named_and_not_shown(serve: Serve, connect: Connect) -> None:
    server = serve()
    admin = await connect(server.url)
    await admin.command("ACL", "SETUSER", "default", ">right-one")
    path = server.url.removeprefix("unix://")

    for url in (server.url, f"unix://:wrong-one@{path}", f"unix://someone:wrong-one@{path}"):
        with pytest.raises(ServerUnfitError, match="password") as error:
            await in_time(connect(url), 3)
        assert "wrong-one" not in str(error.value)
    store = await connect(f"unix://:right-one@{path}")
    assert await store.command("PING") in (b"PONG", "PONG", True)


async def test_a_user_without_the_rights_of_a_worker_is_told_so(serve: Serve, connect: Connect) -> None:
    server = serve()
    admin = await connect(server.url)
    await admin.command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+info", "+get")
    path = server.url.removeprefix("unix://")

    with pytest.raises(ServerUnfitError, match="rights of a worker"):
        await in_time(connect(f"unix://reader:pw@{path}"), 3)


def test_a_password_is_never_shown() -> None:
    for url, shown in (
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:secret@localhost:6379", "redis://:***@localhost:6379"),
        ("rediss://me:se%40cret@host/1", "rediss://me:***@host/1"),
        ("unix://me:secret@/run/redis.sock", "unix://me:***@/run/redis.sock"),
    ):
        assert without_password(url) == shown


# --- the function library ---------------------------------------------------------------------------------------------


def a_foreign_build() -> Library:
    return assemble(lambda name, text: text + "\n-- of somebody else\n" if name == "digest.lua" else text)


async def test_a_foreign_build_of_the_library_is_refused_and_replaced_only_when_asked(
    serve: Serve, connect: Connect
) -> None:
    server = serve()
    foreign = await connect(server.url, library=a_foreign_build(), replace_library=True)

    with pytest.raises(LibraryMismatchError, match="swarm redis upgrade"):
        await connect(server.url, library=assemble(), replace_library=False)
    assert await foreign.call("digest", []) == a_foreign_build().digest.encode()
    ours = await connect(server.url, library=assemble(), replace_library=True)

    assert await ours.call("digest", []) == assemble().digest.encode()


async def test_a_library_that_vanished_is_loaded_again_by_the_next_call(serve: Serve, connect: Connect) -> None:
    store = await connect(serve().url)
    async with Blackboard(store, job_board("jobs")) as board:
        await store.command("FUNCTION", "FLUSH")

        await asyncio.gather(*(given_item(board, f"i{n}") for n in range(20)))
        await store.command("FUNCTION", "FLUSH")
        waiting = asyncio.create_task(board.claim("jobs", "w", most=20))

        assert len(await in_time(waiting)) == 20


async def test_a_foreign_build_that_turns_up_later_is_refused_when_ours_vanished(
    serve: Serve, connect: Connect
) -> None:
    server = serve()
    store = await connect(server.url, library=assemble(), replace_library=False)
    await store.command("FUNCTION", "FLUSH")
    await store.command(
        "FUNCTION", "LOAD", "#!lua name=swarm_v1\nredis.register_function('swarm_v1_digest', function() return 'x' end)"
    )

    with pytest.raises(LibraryMismatchError):
        await store.call("heartbeat", ["a", "b", "c", "d"], [])


async def test_many_processes_can_open_an_empty_server_at_once(serve: Serve, connect: Connect) -> None:
    server = serve()

    stores = await asyncio.gather(*(connect(server.url) for _ in range(12)))

    assert len({await store.call("digest", []) for store in stores}) == 1


async def test_a_function_that_no_version_has_is_a_mismatch(store: Store) -> None:
    with pytest.raises(LibraryMismatchError, match="fly"):
        await store.call("fly", [], [])


async def test_an_error_inside_a_function_is_typed(store: Store) -> None:
    await store.command("SET", "text", "x")

    with pytest.raises(LibraryMismatchError):
        await store.call("read_items", ["text", "text", "text"], ["a"])
    with pytest.raises(LibraryMismatchError):
        await store.command("HGET", "text", "a")
    with pytest.raises(LibraryMismatchError):
        await store.commands(("HGET", "text", "a"), ("PING",))


# --- boards -----------------------------------------------------------------------------------------------------------


async def test_a_board_is_registered_once_and_another_of_its_name_is_refused(
    board: Blackboard, open_board: OpenBoard
) -> None:
    await open_board(job_board("jobs"))
    await open_board(job_board("jobs", lease_s=5))  # leases are each worker's own business
    before = await snapshot(board.store)

    with pytest.raises(BoardMismatchError, match="--replace-board"):
        await open_board(job_board("jobs", max_attempts=1))
    assert await snapshot(board.store) == before

    await open_board(job_board("jobs", max_attempts=1), replace_board=True)
    await board.fail((await given_claim(board, "a")).claim, "x")
    assert (await board.get("a")).status == "quarantined", "the new rules hold for everybody"


@pytest.mark.unaudited
async def test_a_board_is_not_replaced_while_items_stand_where_the_new_one_has_no_place(
    board: Blackboard, open_board: OpenBoard
) -> None:
    await given_item(board, "a", status="done")
    without = Board(
        name="jobs",
        sections={"jobs": Section(ready={"waiting": "active"}, resting=("finished",))},
        steps={"active": frozenset({"finished"})},
        final=frozenset({"finished"}),
    )
    before = await snapshot(board.store)

    with pytest.raises(BoardMismatchError, match="jobs/done/"):
        await open_board(without, replace_board=True)
    assert await snapshot(board.store) == before

    await board.delete("jobs", "a")
    await open_board(without, replace_board=True)


@pytest.mark.unaudited
async def test_a_board_is_not_replaced_while_claims_could_not_be_taken_back(
    board: Blackboard, open_board: OpenBoard
) -> None:
    claimed = await given_claim(board, "a")
    renamed = Board(
        name="jobs",
        sections={"jobs": Section(ready={"open": "active"}, resting=("done",))},
        steps={"active": frozenset({"done"})},
        final=frozenset({"done"}),
    )

    with pytest.raises(BoardMismatchError, match="jobs/active/"):
        await open_board(renamed, replace_board=True)

    await board.complete(claimed.claim)
    await open_board(renamed, replace_board=True)


async def test_replacing_a_board_keeps_its_items_and_its_clock(
    board: Blackboard, clock: ManualClock, open_board: OpenBoard
) -> None:
    await clock.advance(s=3600)
    claimed = await given_claim(board, "a")
    await given_item(board, "b", delay_s=60)

    wider = await open_board(
        job_board("jobs").with_sections("jobs", more=Section(resting=("done",))), replace_board=True
    )

    await wider.complete(claimed.claim, "more/done")
    assert await wider.queries.counts() == {"jobs/waiting/": 1, "more/done/": 1}
    await clock.advance(s=60)
    assert [each.item.id for each in await wider.claim("jobs", "w")] == ["b"]


async def test_the_answer_of_another_version_is_a_mismatch(store: Store) -> None:
    original = store.call

    async def call(function: str, *args: Any, **options: Any) -> Any:
        return [b"perhaps"] if function == "register_board" else await original(function, *args, **options)

    store.call = call  # type: ignore[method-assign]
    with pytest.raises(LibraryMismatchError, match="register_board"):
        async with Blackboard(store, NEWS):
            pytest.fail("it was opened")


# --- a server that goes away and comes back ---------------------------------------------------------------------------


async def test_calls_go_on_when_redis_is_killed_and_comes_back(lasting: RedisServer, connect: Connect) -> None:
    store = await connect(lasting.url)
    async with Blackboard(store, job_board("jobs")) as board:
        accepted: list[str] = []

        async def submit(writer: int) -> None:
            for n in range(60):
                [answer] = await board.submit(Submission(id=f"{writer}_{n}", section="jobs", payload={}))
                assert answer.accepted, "a repeat of its own call is no duplicate"
                accepted.append(answer.id)

        writing = asyncio.gather(*(submit(writer) for writer in range(8)))
        for _ in range(2):
            seen = len(accepted)
            while len(accepted) < seen + 60:
                await asyncio.sleep(0)
            lasting.kill()
            await asyncio.sleep(0.05)  # let them notice
            lasting.restart()
        await in_time(writing, 20)

        assert store.disruptions > 0
        assert await board.queries.counts() == {"jobs/waiting/": 480}
        assert (await audit(store, board.namespace, "jobs")).clean


async def test_a_task_that_is_cancelled_in_a_call_ends(store: Store) -> None:
    told_twice = asyncio.Event()

    async def call() -> None:
        while not told_twice.is_set():
            await store.command("PING")

    for turns in [*range(12)] * 100:  # of the loop: wherever the call is just then
        task = asyncio.create_task(call())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        _, alive = await asyncio.wait({task}, timeout=5)
        if alive:
            told_twice.set()
        assert not alive, f"it goes on though it was cancelled {turns} turns after it began"


async def test_work_goes_on_when_connections_are_cut_again_and_again(serve: Serve, connect: Connect) -> None:
    server = serve()
    store, cutter = await connect(server.url), await connect(server.url)
    async with Blackboard(store, job_board("jobs")) as board:
        names = [f"i{n}" for n in range(120)]
        await given_items(board, *names)
        done: list[str] = []

        async def work(agent: str) -> None:
            while got := await board.claim("jobs", agent, most=3):
                for each in got:
                    await board.complete(each.claim)
                    done.append(each.item.id)

        async def cut() -> None:
            while True:
                await cutter.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await asyncio.sleep(0.01)

        cutting = asyncio.create_task(cut())
        try:
            await in_time(asyncio.gather(*(work(f"w{n}") for n in range(4))), 60)
        finally:
            cutting.cancel()
            await asyncio.gather(cutting, return_exceptions=True)

        assert store.disruptions > 0
        assert sorted(done) == sorted(names)
        assert await board.queries.counts() == {"jobs/done/": 120}
        report = await audit(store, board.namespace, "jobs")
        assert report.clean, report.breaches
        assert {item.attempts for item in await board.find_many(names) if item} == {0}
        history = [event.kind for event in await board.history("i7")]
        assert history == ["submitted", "claimed", "completed"], "no claim was made twice for a lost reply"


async def test_a_counter_is_right_though_replies_get_lost_and_others_write(serve: Serve, connect: Connect) -> None:
    server = serve()
    stores, cutter = [await connect(server.url) for _ in range(3)], await connect(server.url)
    boards = [Blackboard(store, job_board("jobs")) for store in stores]
    for board in boards:
        await board.__aenter__()
    await given_item(boards[0], "a", payload={"n": 0})

    async def count(board: Blackboard) -> None:
        counted = 0
        while counted < 15:
            try:
                await board.update("jobs", "a", lambda payload: {"n": payload["n"] + 1})
                counted += 1
            except VersionConflictError:  # the others were quicker twenty times
                pass

    async def cut() -> None:
        while True:
            await cutter.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.01)

    cutting = asyncio.create_task(cut())
    await in_time(asyncio.gather(*(count(board) for board in boards for _ in range(2))), 30)
    cutting.cancel()

    item = await boards[0].get("a")
    assert (item.payload, item.version) == ({"n": 90}, 91)
    assert sum(store.disruptions for store in stores) > 0
    for board in boards:
        await board.__aexit__(None, None, None)


async def test_a_call_gives_up_after_the_time_allowed_and_the_next_one_works(serve: Serve, connect: Connect) -> None:
    server = serve()
    store = await connect(server.url, timeout_s=0.2, retry_s=0.3)
    server.freeze()

    with pytest.raises(StoreUnavailableError):
        await in_time(store.command("GET", "x"), 3)
    with pytest.raises(StoreUnavailableError):
        await in_time(store.pop(["bell"], 0.1), 3)

    server.thaw()
    assert await store.command("GET", "x") is None


async def test_a_busy_server_is_waited_for(serve: Serve, connect: Connect) -> None:
    server = serve(options={"busy-reply-threshold": "20"})
    store, other = await connect(server.url), await connect(server.url)
    slow = """
        local start = redis.call('TIME')
        repeat local now = redis.call('TIME') until (now[1] - start[1]) * 1e6 + now[2] - start[2] > 300000
        return 'done'
    """
    running = asyncio.create_task(other.command("EVAL", slow, 0))
    await asyncio.sleep(0.1)

    assert await in_time(store.command("GET", "x")) is None
    assert store.disruptions > 0
    assert await running == b"done"


async def test_a_disk_that_fails_is_no_fault_of_the_library(serve: Serve, connect: Connect) -> None:
    server = serve(options={"save": "3600 1", "dbfilename": "taken"})
    (server.folder / "taken").mkdir()  # so that no snapshot can be put in place
    store = await connect(server.url, retry_s=0.2)
    await store.command("SET", "x", 1)
    await store.command("BGSAVE")

    with pytest.raises(StoreUnavailableError, match="MISCONF"):
        for _ in range(200):
            await store.command("SET", "x", 2)
            await asyncio.sleep(0.01)
    server.kill()  # it would not end by itself before it has saved


async def test_a_thousand_calls_at_once_are_not_taken_for_an_outage(store: Store) -> None:
    answers = await asyncio.gather(*(store.command("GET", "x") for _ in range(1000)))

    assert answers == [None] * 1000
    assert store.disruptions == 0


async def test_of_several_lists_the_first_entry_is_taken_and_told_where_it_was(store: Store) -> None:
    popping = asyncio.create_task(store.pop(["swarm:{lists}:first", "swarm:{lists}:second"], 5))
    await store.command("LPUSH", "swarm:{lists}:second", "1")

    assert await in_time(popping) == ("swarm:{lists}:second", b"1")
    assert await store.pop(["swarm:{lists}:first", "swarm:{lists}:second"], 0.05) is None


# --- out of memory ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def full(serve: Serve, connect: Connect) -> AsyncIterator[tuple[Blackboard, list[Any]]]:
    """A board with claims on it whose Redis has reached its memory limit; and the claims."""
    store = await connect(serve().url)
    async with Blackboard(store, job_board("jobs")) as board:
        await given_items(board, *(f"i{n}" for n in range(6)))
        claims = [each.claim for each in await board.claim("jobs", "w1", most=5)]
        await board.register_agent("w1", "worker")
        used = int((await store.info())["used_memory"])
        await store.command("CONFIG", "SET", "maxmemory", used // 2)
        yield board, claims
        await store.command("CONFIG", "SET", "maxmemory", 0)
        report = await audit(store, board.namespace, "jobs")
        assert report.clean, report.breaches


async def test_without_memory_nothing_more_is_taken_in(full: tuple[Blackboard, list[Any]]) -> None:
    board, _ = full

    for growing in (
        board.submit(Submission(id="x", section="jobs", payload={})),
        board.claim("jobs", "w2"),
        board.claims.claim_item("i5", "w2"),
        board.update("jobs", "i5", {"x": 1}),
    ):
        with pytest.raises(SectionFullError, match="maxmemory"):
            await growing

    assert await board.find("x") is None
    assert (await board.get("i5")).version == 1


async def test_without_memory_what_is_there_is_still_worked_off(full: tuple[Blackboard, list[Any]]) -> None:
    board, (a, b, c, d, e) = full

    await board.complete(a, result={"x": 1}, patch={"y": 2})
    assert await board.fail(b, "no luck") == "failed"
    await board.hand_back(c)
    assert await board.fail(d, "hopeless", give_up=True) == "quarantined"
    assert await board.claims.renew([e]) == [""]
    await board.heartbeat("w1")
    assert await board.claims.reap(["jobs/waiting/"]) == 0
    assert await board.delete("jobs", "i5")
    assert await board.agents.find("w1") is not None
    assert len(await board.query_by_status("jobs", "waiting")) == 2
