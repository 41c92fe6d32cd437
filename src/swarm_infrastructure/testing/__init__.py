"""What tests of a swarm need: a real Redis of their own, and a pytest plugin that brings it as a fixture.

Each name is imported when it is first asked for: pytest loads the plugin, and so this package, in every run of every
project whose environment has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swarm_infrastructure.testing.redis_server import RedisServer, available_servers

__all__ = ["RedisServer", "available_servers"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from swarm_infrastructure.testing import redis_server

    return getattr(redis_server, name)
