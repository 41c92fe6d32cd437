"""The append-only file cut anywhere: whatever came through, no call is half there (F6)."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from group_lab import LONG, SEED, Load, check, report

from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import RedisServer

pytestmark = pytest.mark.timeout(3600)
TAIL_BYTES = 64 * 1024
OFFSETS = 300 if LONG else 20
NAMESPACE = "cut"


@pytest.fixture
async def written(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Path]:
    """The append-only folder of a server on which claims, endings and settlements went on until it stopped."""
    server = RedisServer(request.config.getoption("--redis-kind"), persist=True)
    with server:
        async with Store(server.url) as store, Load(store, NAMESPACE) as load:
            load.start()
            while _tail(server.folder / "appendonlydir").stat().st_size < 3 * TAIL_BYTES:
                await asyncio.sleep(0.05)
            await load.stop()
            assert load.settled and load.completed
        server.kill()
        yield shutil.copytree(server.folder / "appendonlydir", tmp_path / "aof")


def _tail(folder: Path) -> Path:
    """The file that is appended to."""
    return max(folder.glob("*.incr.aof"))


async def test_a_file_cut_anywhere_holds_whole_calls_only(
    request: pytest.FixtureRequest, written: Path, tmp_path: Path
) -> None:
    kind, size = request.config.getoption("--redis-kind"), _tail(written).stat().st_size
    held: list[int] = []
    # as many offsets as asked for, evenly over the last 64 KB; the first one cuts a single byte
    for offset in (size - 1 - number * (TAIL_BYTES // OFFSETS) for number in range(OFFSETS)):
        server = RedisServer(kind, persist=True, options={"aof-load-truncated": "yes"})
        with server:
            server.kill()  # its folder is what we are after
            shutil.rmtree(server.folder / "appendonlydir")
            shutil.copytree(written, server.folder / "appendonlydir")
            os.truncate(_tail(server.folder / "appendonlydir"), offset)
            server.restart()
            async with Store(server.url) as store:
                await check(store, NAMESPACE)
                held.append(int(await store.command("HLEN", f"swarm:{{{NAMESPACE}:jobs}}:items")))
    assert held == sorted(held, reverse=True), f"a shorter file holds no more (seed {SEED})"
    assert held[-1] < held[0], "the cuts took something away"
    report("append-only file cut", fault="F6", server=kind, n=len(held), lost=0, tail_bytes=TAIL_BYTES,
           items_after_the_first_cut=held[0], items_after_the_last=held[-1])  # fmt: skip
