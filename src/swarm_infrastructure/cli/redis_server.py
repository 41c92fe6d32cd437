"""``swarm redis``: the private server of the data folder, and the function library on whichever server is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigurationError, RefusedError
from .render import Output, OutputOption, ago, help_if_alone, say, show, show_json
from .session import finish, open_session

if TYPE_CHECKING:
    from ..config import Settings
    from ..store.embedded import EmbeddedServer

__all__ = ["app"]

app = typer.Typer(
    help="The private Redis of the data folder: start, stop, look at it, upgrade its functions.",
    callback=help_if_alone,
    invoke_without_command=True,
)


@app.command()
def start() -> None:
    """Start the private Redis, and leave it running.

    A swarm starts one by itself, and stops it when it leaves; this one stays until 'swarm redis stop'.
    """
    settings = _settings()
    if url := settings.redis_url_from_env():
        from ..config import masked_url

        raise ConfigurationError(
            f"REDIS_URL or REDIS_HOST names {masked_url(url)}, so nobody would use a private Redis; "
            "start that one, or unset the variable"
        )
    server = _server(settings)
    located = server.keep()
    say(f"{located.how} ({located.url}); it runs until: swarm redis stop")


@app.command()
def stop(
    now: Annotated[bool, typer.Option("--now", help="Even if a swarm uses it.")] = False,
) -> None:
    """Stop the private Redis; its data stays."""
    server = _server(_settings())
    stopped = server.stop_now() if now else server.stop_unused()
    if stopped:
        say(f"stopped; its data stays in {server.data_dir}")
    elif now or server.find() is None:
        say(f"no Redis runs in {server.data_dir}")
    else:
        raise RefusedError(
            f"the Redis in {server.data_dir} is in use by a swarm{'' if server.kept else ', and stops with it'}; "
            "stop that first, or all the same: swarm redis stop --now"
        )


@app.command()
def info(output: OutputOption = Output.TABLE) -> None:
    """Show which Redis is used, and what it says of itself."""
    facts = finish(_read())
    if output is not Output.TABLE:
        show_json(facts, output)
        return
    from rich.text import Text

    limit = facts["max_memory_bytes"]
    lines = {
        "found": facts["found"],
        "version": facts["version"],
        "address": facts["url"],
        "process": facts["pid"],
        "up": ago(facts["uptime_s"]),
        "clients": facts["clients"],
        "memory": _megabytes(facts["memory_bytes"]) + (f" of {_megabytes(limit)}" if limit else ", no limit"),
        "functions": _build(facts),
    }
    if facts["data_dir"]:
        lines["data folder"] = facts["data_dir"]
        lines["runs until"] = "swarm redis stop" if facts["kept"] else "its last user leaves"
    show(*(Text(f"{name:<12} {value}") for name, value in lines.items()))


@app.command()
def upgrade() -> None:
    """Load this version's functions in place of another's.

    Right only if no swarm of another version uses the server: its workers would stop with an error.
    """
    found, ours = finish(_upgrade())
    if found == ours:
        say(f"the functions are of this version already (build {ours[:12]})")
    else:
        say(f"loaded build {ours[:12]} of the functions" + (f" in place of {found[:12]}" if found else ""))


async def _upgrade() -> tuple[str | None, str]:
    from ..store.library import shipped

    async with open_session(check=False) as session:
        found = await session.store.library_digest()
    async with open_session(replace_library=True):
        return found, shipped().digest


async def _read() -> dict[str, Any]:
    from ..store.library import shipped

    async with open_session(check=False) as session:
        facts = await session.store.info()
        name = "valkey" if "valkey_version" in facts else "redis"
        private = session.settings.redis_url_from_env() is None
        server = _server(session.settings)
        build = await session.store.library_digest()
        return {
            "found": session.located.how,
            "version": f"{name} {facts[f'{name}_version']}",
            "url": session.store.shown,
            "pid": facts["process_id"],
            "uptime_s": facts["uptime_in_seconds"],
            "clients": facts["connected_clients"],
            "memory_bytes": facts["used_memory"],
            "max_memory_bytes": facts["maxmemory"],
            "library_build": build,
            "library_is_ours": build == shipped().digest,
            "data_dir": str(server.data_dir) if private else None,
            "kept": server.kept if private else None,
        }


def _build(facts: dict[str, Any]) -> str:
    build = facts["library_build"]
    if build is None:
        return "none yet; the first swarm loads them"
    return f"build {build[:12]}, " + (
        "this version's" if facts["library_is_ours"] else "another version's: swarm redis upgrade"
    )


def _settings() -> Settings:
    from ..config import Settings

    return Settings.load()


def _server(settings: Settings) -> EmbeddedServer:
    from ..store.embedded import EmbeddedServer

    return EmbeddedServer(settings.data_dir, binary=settings.redis_server)


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.1f} MB"
