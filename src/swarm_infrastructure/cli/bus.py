"""``swarm bus``: hear what agents tell each other, look back, and say something."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError
from .render import Column, Output, OutputOption, cut, help_if_alone, say, show_json, show_rows
from .session import acting_user, finish, open_bus

if TYPE_CHECKING:
    from ..message_bus import Message

__all__ = ["app"]

app = typer.Typer(help="Hear what agents tell each other, look back, and say something.", invoke_without_command=True)

HISTORY = [
    Column("when", lambda row: row["timestamp"][:19].replace("T", " ")),
    Column("type", lambda row: row["type"]),
    Column("sender", lambda row: row["sender"], fold=True),
    Column("recipient", lambda row: row["recipient"] or "-", fold=True),
    Column("payload", lambda row: cut(json.dumps(row["payload"])), fold=True),
]
TypeArgument = Annotated[
    str | None, typer.Argument(metavar="TYPE", help="Only messages of this type, such as task.assign.")
]


@app.callback()
def bus(context: typer.Context) -> None:
    """Show what there is to do here, if no command is named."""
    help_if_alone(context)


@app.command()
def history(
    msg_type: TypeArgument = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many.")] = 20,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the newest messages, newest first; a thousand of each type are kept."""

    async def read() -> list[dict[str, Any]]:
        async with open_bus() as bus:
            return [_row(message) for message in await bus.get_message_history(msg_type, count)]

    show_rows(finish(read()), HISTORY, output, empty="no messages" + (f" of type {msg_type}" if msg_type else ""))


@app.command()
def listen(
    channels: Annotated[
        list[str] | None, typer.Argument(metavar="CHANNEL", help="Also these, such as swarm.tier.scout.")
    ] = None,
) -> None:
    """Show broadcasts as they come, an object of JSON a line, until Ctrl-C."""

    async def follow() -> None:
        import asyncio

        async with open_bus() as bus:
            bus.on("*", lambda message: show_json(_row(message), Output.JSONL))
            bus.on_gap(lambda gap: say(f"{gap.missed} messages of {gap.channel} were missed"))
            await bus.start(*(channels or ()))
            await asyncio.Event().wait()

    finish(follow())


@app.command()
def send(
    msg_type: Annotated[str, typer.Argument(metavar="TYPE", help="Such as task.assign, or a word of your own.")],
    payload: Annotated[str, typer.Argument(help="JSON.")] = "{}",
    to: Annotated[str, typer.Option(metavar="WHO", help="An agent's id, or tier:NAME; everybody by default.")] = "",
) -> None:
    """Tell agents something. It is lost where nobody listens."""
    from ..message_bus import Message

    try:
        data = json.loads(payload)
    except ValueError as error:
        raise InvalidInputError("PAYLOAD", found=payload, needed=f"JSON ({error})") from error
    message = Message.create(msg_type, acting_user(), payload=data)

    async def tell() -> None:
        async with open_bus() as bus:
            if to.startswith("tier:"):
                heard = await bus.send_to_tier(to.removeprefix("tier:"), message)
            elif to:
                heard = int(await bus.send_to_agent(to.removeprefix("agent:"), message))
            else:
                heard = await bus.broadcast(message)
            if heard:
                say(f"{heard} process{'es' if heard > 1 else ''} heard it")
            else:
                say("nobody listens; who is there: swarm agents list")

    finish(tell())


def _row(message: Message) -> dict[str, Any]:
    return message.model_dump(mode="json", exclude_none=True)
