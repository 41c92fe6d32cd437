"""What a command needs before it can ask: the settings, a Redis that runs already, and one board. Starts nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigurationError, InvalidInputError, UnavailableError

if TYPE_CHECKING:
    from ..blackboard import Blackboard
    from ..config import Settings
    from ..failure_recovery import FailureRecovery
    from ..message_bus import MessageBus
    from ..store import Store
    from ..store.embedded import Located

__all__ = ["Session", "acting_user", "find_redis", "finish", "open_board", "open_bus", "open_recovery", "open_session"]

PATIENCE_S = 2.0  # for one answer; a person waits for it
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Session:
    """An open store, and how it was found."""

    settings: Settings
    located: Located
    store: Store

    async def boards(self, name: str | None = None) -> list[str]:
        """The board called *name*, or every board of the namespace.

        Raises:
            InvalidInputError: there is no board of this name.
        """
        from ..blackboard.queries import list_boards
        from ..keys import BoardKeys, check_name

        namespace = self.settings.namespace
        if name is None:
            return await list_boards(self.store, namespace)
        if not await self.store.command("EXISTS", BoardKeys(namespace, check_name("--board", name)).rules):
            known = ", ".join(await list_boards(self.store, namespace))
            needed = f"one of namespace {namespace!r}: {known or 'which has none yet'}"
            raise InvalidInputError("--board", found=name, needed=needed, step="SWARM_ID names the namespace")
        return [name]

    async def board(self, name: str | None) -> Blackboard:
        """The board called *name*, or the only one; as it is registered, whatever this version would register."""
        from ..blackboard import Blackboard
        from ..blackboard.audit import read_board
        from ..blackboard.queries import QUEUE

        namespace, found = self.settings.namespace, await self.boards(name)
        if name is None:
            found = [each for each in found if not each.endswith(QUEUE)]
        if not found:
            raise self.no_boards()
        if len(found) > 1:
            raise InvalidInputError("--board", found="several boards", needed=f"one of {', '.join(found)}")
        board = await read_board(self.store, namespace, found[0])
        return Blackboard(self.store, board, namespace=namespace, dead_after_s=self.settings.dead_after_s)

    def no_boards(self) -> ConfigurationError:
        """The error of a namespace without boards."""
        return ConfigurationError(
            f"no board in namespace {self.settings.namespace!r} at {self.store.shown}; "
            "run a swarm first: swarm run TARGET, or name another namespace in SWARM_ID"
        )


def finish(work: Coroutine[Any, Any, Answer]) -> Answer:
    """The answer of *work*."""
    import asyncio  # a quarter of the time that --help takes

    return asyncio.run(work)


def find_redis(settings: Settings) -> Located:
    """The Redis that runs for these settings.

    Raises:
        UnavailableError: there is none; nothing is started.
    """
    from ..store.embedded import locate_running

    located = locate_running(settings, answer_s=PATIENCE_S)
    if located is None:
        raise UnavailableError(
            f"no Redis is named in REDIS_URL or REDIS_HOST, and none runs in {settings.data_dir.absolute()}; "
            "start one: swarm redis start (a swarm brings its own: swarm run TARGET)"
        )
    return located


@contextlib.asynccontextmanager
async def open_session(*, check: bool = True, replace_library: bool = False) -> AsyncIterator[Session]:
    """Connect to the Redis that runs.

    Args:
        check: refuse a server that can't carry a board, and one with another build of the function library.
        replace_library: put ours in place of another build.
    """
    from ..config import Settings
    from ..monitoring import configure_logs
    from ..store import Store

    settings = Settings.load()
    configure_logs(settings)
    located = find_redis(settings)
    async with contextlib.AsyncExitStack() as closing:
        store = Store(
            located.url, timeout_s=PATIENCE_S, retry_s=0, durability=settings.durability, replicas=settings.replicas,
            replace_library=replace_library,
        )  # fmt: skip
        if check:
            await closing.enter_async_context(store)
        else:
            closing.push_async_callback(store.close)
        yield Session(settings, located, store)


@contextlib.asynccontextmanager
async def open_board(name: str | None) -> AsyncIterator[Blackboard]:
    """Connect, and open the board called *name*, or the only one."""
    async with open_session() as session:
        blackboard = await session.board(name)
        try:
            yield blackboard
        finally:
            await blackboard.claims.close()


@contextlib.asynccontextmanager
async def open_recovery(name: str | None) -> AsyncIterator[FailureRecovery]:
    """Connect, with what is known of failures on the board called *name*, or the only one."""
    from ..failure_recovery import FailureRecovery

    async with open_board(name) as blackboard:
        yield FailureRecovery(blackboard)


@contextlib.asynccontextmanager
async def open_bus() -> AsyncIterator[MessageBus]:
    """Connect, with the bus as the person at the keyboard has it; it does not listen yet."""
    from ..message_bus import Hub, MessageBus, TaskQueues

    async with open_session() as session:
        namespace = session.settings.namespace
        hub, queues = Hub(session.store, namespace), TaskQueues(session.store, namespace)
        bus = MessageBus(hub, queues, acting_user())
        try:
            yield bus
        finally:
            await bus.stop()
            await hub.close()
            await queues.close()


def acting_user() -> str:
    """Who does it, for the log: "user:alice"."""
    import getpass

    try:
        return f"user:{getpass.getuser()}"
    except (KeyError, OSError):  # a container that runs as a bare number
        return f"user:{os.getuid()}"
