"""What tests of a swarm need: a real Redis of their own, a clock moved by hand, scripted models, and a pytest plugin.

Each name is imported when it is first asked for: pytest loads the plugin, and so this package, in every run of every
project whose environment has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swarm_infrastructure.testing.clock import ManualClock
    from swarm_infrastructure.testing.fake_llm import FakeLLM, FunctionLLM
    from swarm_infrastructure.testing.redis_groups import RedisCluster, SentinelGroup
    from swarm_infrastructure.testing.redis_server import RedisServer, available_servers

__all__ = ["FakeLLM", "FunctionLLM", "ManualClock", "RedisCluster", "RedisServer", "SentinelGroup", "available_servers"]

_HOMES = {
    "FakeLLM": "fake_llm",
    "FunctionLLM": "fake_llm",
    "ManualClock": "clock",
    "RedisCluster": "redis_groups",
    "RedisServer": "redis_server",
    "SentinelGroup": "redis_groups",
    "available_servers": "redis_server",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
