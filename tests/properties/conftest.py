from __future__ import annotations

from collections.abc import Iterator

import pytest

from swarm_infrastructure.testing import RedisServer


@pytest.fixture(scope="module")
def lasting_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server with an append-only file, so that it can be restarted in the middle of a test."""
    with RedisServer(request.config.getoption("--redis-kind"), persist=True) as server:
        yield server
