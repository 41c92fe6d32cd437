"""A rolling upgrade: the function library of this release and that of the next, loaded side by side, on one board (F24)."""

from __future__ import annotations

import asyncio
import signal

import pytest
from arena import LONG, PATIENCE_S, Arena, Process
from lab import until
from next_library import PREFIX as NEXT

from swarm_infrastructure.errors import LibraryMismatchError
from swarm_infrastructure.store import PREFIX, Store, assemble

pytestmark = pytest.mark.timeout(1800)
WORKERS = 3
UPGRADES = 10 if LONG else 1


async def test_workers_of_two_releases_share_a_board_while_one_takes_the_others_place(arena: Arena) -> None:
    every: list[str] = []
    for _ in range(UPGRADES):
        old, new = [await arena.start(1) for _ in range(WORKERS)], list[Process]()
        ids: list[str] = []
        for n in range(WORKERS):
            ids += await arena.submit(*({"do": "sleep", "s": arena.random.uniform(0.02, 0.2)} for _ in range(60)))
            ids += await arena.submit(*({"do": "ask"} for _ in range(10)))
            new.append(await arena.start(1, "--next-library"))
            await asyncio.sleep(arena.random.uniform(0.2, 0.5))  # both releases at work
            old[n].send_signal(signal.SIGTERM if n else signal.SIGKILL)  # two leave in order, one does not
            await asyncio.to_thread(old[n].wait, PATIENCE_S)
        await _done(arena, ids)
        by = {line["pid"] for line in arena.ledger.lines("accepted") if line["item"] in ids}
        assert by & {worker.pid for worker in old}
        assert by & {worker.pid for worker in new}
        for worker in new:
            worker.terminate()
            await asyncio.to_thread(worker.wait, PATIENCE_S)
        every += ids
    functions = str(await arena.store.command("FUNCTION", "LIST"))
    assert f"{PREFIX}claim" in functions
    assert f"{NEXT}claim" in functions
    await arena.account(every)
    arena.report("rolling upgrade of the library", fault="F24", rounds=UPGRADES, **arena.tally(every), wrong=0)


async def _done(arena: Arena, ids: list[str]) -> None:
    await until(lambda: arena.done(ids), "all items done")


async def test_a_foreign_build_under_this_releases_name_is_refused_by_a_typed_error(arena: Arena) -> None:
    await arena.start(1)
    ids = await arena.submit(*({"do": "sleep", "s": 0.05} for _ in range(20)))
    foreign = assemble(lambda file, text: text.replace("-- guard:", "-- Guard:") if file == "claim.lua" else text)
    assert foreign.digest != arena.store._library.digest
    with pytest.raises(LibraryMismatchError, match="swarm_v1"):
        async with Store(arena.server.url, library=foreign):
            pass
    await until(lambda: arena.done(ids), "the work of those who were there first")
    await arena.account(ids)
    arena.report("a foreign build of the library", fault="F24", **arena.tally(ids), refused_at_start=1, wrong=0)
