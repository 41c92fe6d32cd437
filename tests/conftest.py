"""What the tests share: boards on a real Redis, clocks moved by hand, and ``--mutant`` (see ``mutants.py``).

Each board is audited when its test has ended: whatever a test did, Redis must hold what the invariants say.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from swarm_infrastructure.blackboard import NEWS, Blackboard, Board, job_board
from swarm_infrastructure.cost_manager.budgets import zone
from swarm_infrastructure.store import Store, connections
from swarm_infrastructure.testing import ManualClock, RedisServer
from swarm_infrastructure.watchdog.audit import audit_whole

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "integration")]  # for examples/ and benchmarks/, and for given.py

from given import Connect, OpenBoard, clock_of  # noqa: E402 - there is no such module before the line above


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutant", metavar="NAME", help="run on a function library without this guard (see mutants.py)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "unaudited: the test forges what Redis holds or replaces its rules, so the audit at its end is left out",
    )
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; what we start is to hear it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if name := config.getoption("--mutant"):
        from mutants import mutant

        broken = mutant(name)
        connections.shipped = lambda: broken  # what every Store of this run insists on


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Opens stores that are closed with the test: ``store = await connect(url)``."""
    async with AsyncExitStack() as stack:

        async def connect(url: str, **options: Any) -> Store:
            return await stack.enter_async_context(Store(url, **options))

        yield connect


@pytest.fixture
async def store(redis_server: RedisServer, connect: Connect) -> Store:
    """A store on the session's server, which is empty."""
    store = await connect(redis_server.url)
    await store.command("FLUSHALL")
    return store


@pytest.fixture
def one_server(request: pytest.FixtureRequest) -> None:
    """For tests of what is between this process and one server: a cluster has several, and other tests."""
    if str(request.config.getoption("--redis-kind")).endswith("cluster"):
        pytest.skip("about the connection to one server")


@pytest.fixture
async def open_board(store: Store, request: pytest.FixtureRequest) -> AsyncIterator[OpenBoard]:
    """Opens boards that are closed with the test, and audited: ``board = await open_board(job_board("jobs"))``."""
    opened: list[Blackboard] = []
    async with AsyncExitStack() as stack:

        async def open_board(board: Board, *, on: Store | None = None, **options: Any) -> Blackboard:
            options = {"namespace": "test"} | options
            opened.append(await stack.enter_async_context(Blackboard(on or store, board, **options)))
            return opened[-1]

        yield open_board
    if request.node.get_closest_marker("unaudited"):
        return
    for namespace, name in {(each.namespace, each.board.name) for each in opened if each.store is store}:
        report = await audit_whole(store, namespace, name, zone=zone("UTC"))
        assert report.clean, "\n".join(map(str, report.breaches))


@pytest.fixture
async def board(open_board: OpenBoard) -> Blackboard:
    """A board with one work queue: waiting → active → done, leases of 30 s."""
    return await open_board(job_board("jobs"))


@pytest.fixture
async def blackboard(open_board: OpenBoard) -> Blackboard:
    """The news board."""
    return await open_board(NEWS)


@pytest.fixture
def clock(board: Blackboard) -> ManualClock:
    """Moves the clock of ``board``."""
    return clock_of(board)


@pytest.fixture
def news_clock(blackboard: Blackboard) -> ManualClock:
    """Moves the clock of ``blackboard``."""
    return clock_of(blackboard)
