"""The audit of what calls leave behind: leases that ran out, receipts, doorbells. Reads Redis and nothing else.

====  ==================================================================================================
I4    while workers live, no lease or delay is over for longer than it takes somebody to look
I9    a receipt says what its agent was given: each id once, none that somebody else got by the same token
I17   a doorbell has one token at most, and hangs where items are claimed from
====  ==================================================================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from ..errors import InvalidInputError
from ..keys import BoardKeys
from ..store import Store
from .audit import Breach
from .clock import read_clock_ms
from .findings import Findings
from .items import Item, read_item
from .lifecycle import Board

__all__ = ["audit_traces"]

PAGE = 1000
MOST_PER_RECEIPT = 500  # items of one call
OVERDUE_S = 10.0  # a sweeper looks every 6 s at most, each claim and idle agent more often
SETTLE_S = 7.0  # and if it has only just begun, it has looked by then


async def audit_traces(store: Store, keys: BoardKeys, board: Board, *, settle_s: float = SETTLE_S) -> Findings:
    """Every breach of I4, I9 and I17 that one board shows.

    Args:
        store: the Redis that holds it.
        keys: of the board.
        board: its rules.
        settle_s: how long to wait, if leases are over, before they are looked at again.
    """
    found = Findings()
    await _leases(store, keys, found, settle_s)
    found.breaches += await _twice(lambda: _receipts(store, keys))
    found.breaches += await _twice(lambda: _bells(store, keys, board))
    return found


async def _twice(look: Callable[[], Awaitable[list[Breach]]]) -> list[Breach]:
    """What is found in two readings: a board at work changes between two questions, and not in the same way twice."""
    found = await look()
    return [each for each in await look() if each in found] if found else []


# -- I4 ----------------------------------------------------------------------------------------------------------------


async def _leases(store: Store, keys: BoardKeys, found: Findings, settle_s: float) -> None:
    overdue = await _overdue(store, keys)
    if not overdue:
        return
    heard_ms = await _heard_ms(store, keys)
    missed = {name: row for name, row in overdue.items() if row[1] + OVERDUE_S * 1000 <= heard_ms}
    if not missed:
        found.skipped["I4"] = f"leases or delays are over ({len(overdue)}), and no worker was heard of since"
        return
    await asyncio.sleep(settle_s)  # a worker that has only just begun has swept by then
    still = await _overdue(store, keys)
    for name, (lane, ends_ms) in sorted(missed.items()):
        if still.get(name) != (lane, ends_ms):
            continue
        what = f"its lease or delay in {lane} was over for {(heard_ms - ends_ms) / 1000:.0f} s when a worker was last heard of"
        found.breach("I4", name, what)


async def _overdue(store: Store, keys: BoardKeys) -> dict[str, tuple[str, int]]:
    """Items whose lease or delay is over for too long: lane, and when it ended."""
    before_ms = await read_clock_ms(store, keys) - round(OVERDUE_S * 1000)
    prefix, found = keys.lane("").timed, dict[str, tuple[str, int]]()
    async for key in _keys_like(store, prefix):
        rows = await store.command("ZRANGEBYSCORE", key, "-inf", before_ms, "WITHSCORES", "LIMIT", 0, PAGE)
        found.update((name.decode(), (key.removeprefix(prefix), int(ends_ms))) for name, ends_ms in rows)
    return found


async def _heard_ms(store: Store, keys: BoardKeys) -> int:
    """When a worker was last heard of. A worker names its process; who comes by hand need not look after leases."""
    beats = await store.command("ZREVRANGE", keys.beats, 0, PAGE - 1, "WITHSCORES")
    told = await store.command("HMGET", keys.agents, *(name for name, _ in beats)) if beats else []
    return max((int(ms) for (_, ms), text in zip(beats, told, strict=True) if text and b'"pid":' in text), default=0)


# -- I9 ----------------------------------------------------------------------------------------------------------------


async def _receipts(store: Store, keys: BoardKeys) -> list[Breach]:
    found: list[Breach] = []
    given: dict[tuple[str, str], str] = {}  # (token, item) → agent
    receipts = await store.command("HGETALL", keys.receipts)
    fence = int(await store.command("GET", keys.fence) or 0)  # after the receipts: it only grows
    for name, text in receipts.items():
        agent = name.decode()
        parts: list[str] = [*str(text.decode()).split(), "", ""]
        request, token = parts[:2]
        ids = [row.partition(":")[2] for row in parts[2:] if row]
        if not request or not token.isdigit() or not all(ids) or len(ids) > MOST_PER_RECEIPT:
            found.append(_breach("I9", f"the receipt of {agent!r} is torn: {text!r:.120}"))
            continue
        if int(token) > fence:
            found.append(_breach("I9", f"the receipt of {agent!r} has token {token}, the newest is {fence}"))
        for item_id in ids:
            other = given.setdefault((token, item_id), agent)
            if other != agent:
                found.append(_breach("I9", f"token {token} gave it to {other!r} and to {agent!r}", item_id))
    for (token, item_id), agent in (await _held(store, keys, list(given), given)).items():
        found.append(
            _breach("I9", f"token {token} gave it to {given[token, item_id]!r}, and {agent!r} holds it", item_id)
        )
    return found


async def _held(
    store: Store, keys: BoardKeys, rows: Sequence[tuple[str, str]], given: dict[tuple[str, str], str]
) -> dict[tuple[str, str], str]:
    """Items that somebody else holds by the token under which they were given to an agent."""
    wrong: dict[tuple[str, str], str] = {}
    for start in range(0, len(rows), PAGE):
        part = rows[start : start + PAGE]
        records = await store.command("HMGET", keys.items, *(item_id for _, item_id in part))
        for (token, item_id), record in zip(part, records, strict=True):
            item = _read(item_id, record)
            if item is not None and str(item.token) == token and item.holder not in ("", given[token, item_id]):
                wrong[token, item_id] = item.holder
    return wrong


def _read(item_id: str, record: bytes | None) -> Item | None:
    try:
        return None if record is None else read_item(item_id, record, None)
    except InvalidInputError:
        return None  # torn: the audit of the board names it


# -- I17 ---------------------------------------------------------------------------------------------------------------


async def _bells(store: Store, keys: BoardKeys, board: Board) -> list[Breach]:
    found: list[Breach] = []
    prefix = keys.lane("").bell
    bells = [key async for key in _keys_like(store, prefix)]
    sizes = await store.commands(*(("LLEN", key) for key in bells)) if bells else []
    for key, size in zip(bells, sizes, strict=True):
        lane = key.removeprefix(prefix)
        section, _, rest = lane.partition("/")
        if size > 1:
            found.append(_breach("I17", f"the bell of {lane} has {size} tokens: so many agents wake for one item"))
        known = board.sections.get(section)
        if size and (known is None or rest.partition("/")[0] not in known.ready):
            found.append(_breach("I17", f"{lane} has a bell, and nothing is claimed from there"))
    return found


async def _keys_like(store: Store, prefix: str) -> AsyncIterator[str]:
    pattern, cursor, seen = prefix.replace("[", "\\[").replace("*", "\\*") + "*", b"0", set[str]()
    while True:
        cursor, page = await store.command("SCAN", cursor, "MATCH", pattern, "COUNT", PAGE)
        for key in page:
            if (name := key.decode()) not in seen:  # a scan may name a key twice
                seen.add(name)
                yield name
        if int(cursor) == 0:
            return


def _breach(invariant: str, what: str, item: str = "") -> Breach:
    return Breach(invariant=invariant, item=item, what=what)
