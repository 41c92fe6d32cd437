"""A model server for the run, and each client of the contract on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from clients import PROVIDERS, Told, client_of
from model_server import ModelServer

from swarm_infrastructure.testing import FakeLLM


@pytest.fixture(scope="session")
def one_model_server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture
def model_server(one_model_server: ModelServer) -> ModelServer:
    one_model_server.reset()
    return one_model_server


@pytest.fixture(params=[*PROVIDERS, "fake"])
async def told(request: pytest.FixtureRequest, model_server: ModelServer) -> AsyncIterator[Told]:
    """Every client of the contract."""
    provider = request.param
    client = FakeLLM([]) if provider == "fake" else client_of(provider, model_server.url)
    yield Told(provider, model_server, client)
    await client.aclose()


@pytest.fixture(params=PROVIDERS)
async def real(request: pytest.FixtureRequest, model_server: ModelServer) -> AsyncIterator[Told]:
    """Every client that has a wire."""
    client = client_of(request.param, model_server.url)
    yield Told(request.param, model_server, client)
    await client.aclose()
