"""The app, and the rim around it where errors become one line on stderr and an exit code.

Exit codes: 0 done · 1 refused or failed · 2 wrong arguments · 3 wrong settings, board or server · 4 Redis does not answer
· 6 done for some items only · 130 Ctrl-C. Data goes to stdout, everything else to stderr.

What takes long to import (the library, rich) is imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ..errors import ConfigurationError, InvalidInputError, SwarmError, UnavailableError
from . import (
    agents,
    audit,
    breakers,
    budget,
    bus,
    checkpoints,
    config,
    doctor,
    escalations,
    failures,
    items,
    models,
    queues,
    redis_server,
    run,
    status,
    topics,
    why,
)
from .render import help_if_alone, say

__all__ = ["app", "main"]

FAILED, MISUSED, MISCONFIGURED, UNREACHABLE, INTERRUPTED = 1, 2, 3, 4, 130

app = typer.Typer(
    name="swarm",
    help="Run swarms of agents that share a board on Redis, watch them, and put right what went wrong.",
    epilog="Exit codes: 0 done, 1 refused or failed, 2 wrong arguments, 3 wrong settings, board or server, "
    "4 Redis does not answer, 6 done for some items only, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # plain help: it comes in half the time, and reads the same in a pipe
    pretty_exceptions_enable=False,  # they would show local variables, passwords included
)
app.command("run", short_help="Run a swarm, in one process or several.")(run.run)
app.command("status", short_help="Boards, items, agents and gates in numbers.")(status.status)
app.add_typer(items.app, name="items", short_help="Look at items; release, retry, replay, archive, delete.")
app.add_typer(items.app, name="item", hidden=True)
app.add_typer(agents.app, name="agents", short_help="Look at agents; pause, resume, drain, shut down, stop, revoke.")
app.add_typer(agents.app, name="agent", hidden=True)
app.add_typer(budget.app, name="budget", short_help="What may be spent: show, set, raise, report, ledger.")
app.add_typer(bus.app, name="bus", short_help="Messages: listen, look back, send.")
app.add_typer(queues.app, name="queues", short_help="Work queues: lengths, next tasks, those set aside.")
app.add_typer(queues.app, name="queue", hidden=True)
app.add_typer(topics.app, name="topics", short_help="Topics: how far groups are; read, replay, redrive.")
app.add_typer(topics.app, name="topic", hidden=True)
app.add_typer(breakers.app, name="breakers", short_help="Backends that failed too often; open and close them by hand.")
app.add_typer(breakers.app, name="breaker", hidden=True)
app.add_typer(checkpoints.app, name="checkpoints", short_help="How far tasks had come.")
app.add_typer(checkpoints.app, name="checkpoint", hidden=True)
app.command("failures", short_help="What went wrong lately, and the health of it all.")(failures.failures)
app.add_typer(escalations.app, name="escalations", short_help="What waits for a person.")
app.add_typer(escalations.app, name="escalation", hidden=True)
app.command("why", short_help="Why an item does not move, or what stands still.")(why.why)
app.command("audit", short_help="Check what must always hold.")(audit.audit)
app.command("doctor", short_help="Find what is wrong, and what to do about it.")(doctor.doctor)
app.command("models", short_help="The models of each tier, and what they cost.")(models.models)
app.add_typer(redis_server.app, name="redis", short_help="The private Redis: start, stop, info, upgrade.")
app.add_typer(config.app, name="config", short_help="The settings, and where each comes from.")


def _show_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"swarm {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    help_if_alone(context)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line *words*, by default those of this process.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # an arrow must not end a command in LANG=C
    try:
        code = app(args=list(sys.argv[1:] if words is None else words), prog_name="swarm", standalone_mode=False)
        sys.stdout.flush()  # here, where a reader that has gone (| head) is no traceback yet
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except typer.Abort:
        say("nothing was changed")
        return FAILED
    except typer.TyperException as error:
        return _misused(error)
    except SwarmError as error:
        # one line: a script that reads a log wants one, and a service's own words may have several
        say(" ".join(str(error).split()) if isinstance(error, UnavailableError) else str(error))
        return code_of(error)
    except Exception as error:  # noqa: BLE001 - the rim: a fault of ours, or of the file that `run` was to load
        _show_traceback(error)
        return FAILED
    return code if isinstance(code, int) else 0


def _show_traceback(error: Exception) -> None:
    """On stderr, from the first line that is not the way from the command line to it."""
    import traceback

    way = (os.path.dirname(__file__), os.path.dirname(typer.__file__), os.path.dirname(importlib.__file__), "<frozen")
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(way):
        frames = frames.tb_next
    if frames is None and not isinstance(error, SyntaxError):  # which names its place itself
        frames = error.__traceback__
    traceback.print_exception(type(error), error, frames)


def code_of(error: SwarmError) -> int:
    """The exit code that tells a script what to do about *error*."""
    match error:
        case InvalidInputError():
            return MISUSED
        case ConfigurationError():
            return MISCONFIGURED
        case UnavailableError():
            return UNREACHABLE
        case _:
            return FAILED


def _misused(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    where = context.command_path if context else "swarm"
    if error.exit_code == MISUSED:
        said = error.format_message().replace("Value error, ", "").strip().rstrip(".")  # pydantic's word for it
        say(f"{said} (see: {where} --help)")
    else:
        say(error.format_message())
    return error.exit_code
