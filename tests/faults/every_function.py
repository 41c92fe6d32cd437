"""One piece of work that calls every function of the library through its Python door, always in the same order.

Done on two boards, one of them behind a network that loses each first reply, it must leave the same in Redis.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from swarm_infrastructure import Blackboard, Budget, Submission, job_board
from swarm_infrastructure.blackboard.claims import ClaimRequest
from swarm_infrastructure.blackboard.clock import read_clock_ms
from swarm_infrastructure.blackboard.retention import LogBound, Retention, take_turn
from swarm_infrastructure.consensus import Debates
from swarm_infrastructure.cost_manager import Ledger, Spender
from swarm_infrastructure.cost_manager.limiter import RateLimiter
from swarm_infrastructure.errors import ModelUnavailableError, UnavailableError
from swarm_infrastructure.failure_recovery import Breakers, CircuitBreakerConfig
from swarm_infrastructure.failure_recovery.checkpoints import Checkpoints
from swarm_infrastructure.failure_recovery.steps import Steps
from swarm_infrastructure.keys import BoardKeys, BusKeys
from swarm_infrastructure.message_bus import Hub, Message, Topics
from swarm_infrastructure.message_bus.schemas import SchemaRegistry
from swarm_infrastructure.message_bus.timers import Timers
from swarm_infrastructure.store import Store

BOARD = job_board("jobs", keep_s=30.0)
TEXT = "The council has repaired the bridge over the river, and it is open again for carts, for horses and for people."
Answer = TypeVar("Answer")


async def insist(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Ask again what nobody repeats by himself, as its caller does."""
    for _ in range(3):
        try:
            return await ask()
        except UnavailableError:
            continue
    return await ask()


async def do_everything(store: Store, namespace: str) -> None:
    """All of it; *namespace* holds nothing yet."""
    async with Blackboard(store, BOARD, namespace=namespace) as board:  # register_board
        await store.library_digest()
        await read_clock_ms(store, board.keys)  # now
        await _items(board)
        await _money(store, board.keys)
        await _debates(store, board.keys)
        await _retention(board)
    await _bus(store, namespace)


async def _items(board: Blackboard) -> None:
    desk, lanes = board.claims, board.claims.lanes("jobs")
    await board.submit(
        *(Submission(id=f"i{n}", section="jobs", payload={"n": n}, content_hash=f"h{n}") for n in range(9))
    )
    await board.find_many(["i0", "i1"])  # read_items
    await board.queries.by_status("jobs", "waiting")  # query
    await board.agents.beat_all([("a1", "worker", {"capabilities": []})])  # heartbeat
    request = ClaimRequest(agent_id="a1", role="worker", lanes=lanes, most=3, lease_s=30)
    [hand] = await desk.claim(request)
    assert isinstance(hand, list)
    done, failed, back = hand
    await insist(lambda: desk.renew([each.claim for each in hand]))
    await board.complete(done.claim, result={"ok": True})  # end_claims
    waited_for = board.store.words("read_arrived", board.keys.whole_items, [done.item.id, "|done|"])
    await insist(lambda: board.store.next_entries(board.keys.events, "0-0", 1.0, most=10, behind=waited_for))
    await board.fail(failed.claim, "no", retry_in_s=5)
    await board.hand_back(back.claim)
    held = await desk.claim_item("i5", "a2", role="worker")
    assert held
    await Steps(board.store, board.keys).record(held.item.id, "draft", b'"text"', claim=held.claim)  # record_step
    checkpoints = Checkpoints(board)
    await checkpoints.create("i5", "drafted", {"n": 1}, claim=held.claim)  # keep_checkpoint
    await checkpoints.list("i5")  # read_checkpoints
    await board.update("jobs", "i6", {"x": 1})  # change_item
    await board.delete("jobs", "i7")
    await board.recognise("i8", TEXT)  # sketch
    await board.store.command("HINCRBY", board.keys.rules, "clock_offset_ms", 60_000)
    await desk.reap(lanes)


async def _money(store: Store, keys: BoardKeys) -> None:
    ledger, limiter = Ledger(store, keys, ZoneInfo("UTC")), RateLimiter(store, keys)
    await ledger.set_budget(Budget(run_limit=1.0))  # set_limits
    spender = Spender("a1", "worker")
    for n in range(3):
        held = await ledger.reserve(spender, 1000 + n, 10, id=f"r{n}")
        if n == 0:
            await ledger.mark_sent(held)
            await ledger.settle(held, 900, 9)
        elif n == 1:
            await ledger.release(held)
    await store.command("HINCRBY", keys.rules, "clock_offset_ms", 60_000)
    await ledger.expire()  # expire_reservations
    await limiter.admit("model:m", calls=10)
    await limiter.slow_down("model:m", 1.0)
    breaker = Breakers(store, keys, CircuitBreakerConfig(failure_threshold=3)).get("m")
    for _ in range(2):  # leave_breaker; a failure counted twice would open it
        with suppress(ModelUnavailableError):
            await breaker.call(_fail)


async def _fail() -> None:
    raise ModelUnavailableError("m", "it is away", may_be_paid=False)


async def _retention(board: Blackboard) -> None:
    assert await take_turn(board.store, board.keys.tending, 3600) in (True, False)  # who asks again is too late
    await board.agents.forget_dead(3600)  # list_older
    retention = Retention(board.store, board.keys, board.board, LogBound(entries=1000))
    await retention.purge_items()  # list_finished, purge_items
    await retention.purge_marks()
    await retention.trim_events()
    ledger = Ledger(board.store, board.keys, ZoneInfo("UTC"))
    await ledger.trim()  # trim_ledger
    await ledger.prune()  # prune_counters


async def _debates(store: Store, keys: BoardKeys) -> None:
    debates = Debates(store, keys)
    await debates.open("d1", "Is it news?", voters=["a1", "a2"], quorum=2, deadline_s=600, item_id="i0")
    await debates.argue("d1", "a1", "publish", "because", 0.9)
    await debates.vote("d1", "a1", "publish", 0.9)
    await debates.open_debates("a2")  # list_debates
    await debates.get("d1")  # look_debate
    await debates.vote("d1", "a2", "publish", 0.8)
    await debates.open("d2", "Is it old?", voters=["a1"], deadline_s=600)
    await debates.cancel("d2")
    await debates.forget("d2")


async def _bus(store: Store, namespace: str) -> None:
    topics, keys = Topics(store, namespace), BusKeys(namespace)
    topic = await topics.open("line", partitions=1)
    for n in range(4):
        await topic.publish(n, key="k", id=f"m{n}")
    async with topic.consume("g", poll_s=0.05, lease_s=30, name="c1", batch=10) as deliveries:  # open_group, take
        first = await anext(deliveries)
        await deliveries.renew()  # renew_partitions
        await first.done()  # finish
        await (await anext(deliveries)).bury("no good")
        await (await anext(deliveries)).fail("not now", retry_in_s=1000)
    await topic.redrive()
    await topic.replay("g", "earliest")
    await topic.trim()
    await topics.open("ticks", partitions=1)
    timers = Timers(store, namespace, topics)
    timers.add("often", every_s=60, missed="all", late_s=3600)
    await timers.run_once()  # read_timers
    await store.command("HINCRBY", keys.rules, "clock_offset_ms", 61_000)
    await timers.run_once()  # tick
    schemas = SchemaRegistry(store, namespace)
    record = {"type": "object", "properties": {"n": {"type": "integer"}}}
    await schemas.register("note", record)
    await schemas.set_compatibility("note", "none")
    hub = Hub(store, namespace)
    with suppress(UnavailableError):  # told or not: whoever listens may not hear it twice, so nobody repeats it
        await hub.publish("all", Message.create("note", "a1", payload=1))  # tell
    await hub.close()


_MASKS = (
    (re.compile(rb"[0-9a-f]{32}"), b"<id>"),
    (
        re.compile(rb"(?<=\|)[\w-]{8}(?=\|)|^[\w-]{8}(?= \d{10})"),
        b"<id>",
    ),  # of the last request, in records and receipts
    (re.compile(rb"\d{4}-\d\d-\d\dT[\d:.+Z-]+"), b"<time>"),
    (re.compile(rb'"late_ms":\d+'), b'"late_ms":<span>'),
    (re.compile(rb"\d{10,}(-\d+)?"), b"<moment>"),
)


def masked(value: Any, namespace: bytes) -> Any:
    """A value from Redis without what differs between two runs: moments, tokens and random names."""
    if isinstance(value, dict):
        pairs = ((masked(name, namespace), name, each) for name, each in value.items())
        return sorted((word, b"<id>" if name == b"request" else masked(each, namespace)) for word, name, each in pairs)
    if isinstance(value, set):
        return sorted(masked(each, namespace) for each in value)
    if isinstance(value, (list, tuple)):
        return [masked(each, namespace) for each in value]
    if isinstance(value, float):
        return b"<moment>" if value > 1e9 else value
    if isinstance(value, bytes):
        value = value.replace(namespace, b"<namespace>")
        for pattern, word in _MASKS:
            value = pattern.sub(word, value)
    return value


async def left_in_redis(store: Store, namespace: str) -> dict[bytes, Any]:
    """Everything under *namespace*, masked, by key."""
    found: dict[bytes, Any] = {}
    reads = {
        b"string": ("GET",), b"hash": ("HGETALL",), b"list": ("LRANGE", 0, -1), b"zset": ("ZRANGE", 0, -1, "WITHSCORES"),
        b"stream": ("XRANGE", "-", "+"), b"set": ("SMEMBERS",),
    }  # fmt: skip
    for key in await store.command("KEYS", f"swarm:{{{namespace}*"):
        command, *rest = reads[await store.command("TYPE", key)]
        value = await store.command(command, key, *rest)
        if command == "HGETALL" and not isinstance(value, dict):
            value = dict(zip(value[::2], value[1::2], strict=True))
        found[masked(key, namespace.encode())] = masked(value, namespace.encode())
    return found
