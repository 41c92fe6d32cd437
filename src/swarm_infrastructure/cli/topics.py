"""``swarm topics``: durable topics, how far their groups are, and what could not be processed."""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError
from .render import Column, Output, OutputOption, YesOption, confirm, cut, say, show_rows
from .session import finish, open_session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ..message_bus import Topic, Topics

__all__ = ["app"]

app = typer.Typer(
    help="See topics and how far their groups are; read, replay, and put dead letters back.",
    invoke_without_command=True,
)

TopicArgument = Annotated[str, typer.Argument(metavar="TOPIC", help="Its name, such as transcriptions.all.")]
GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help="The group, such as topic_analysis.")]
CountOption = Annotated[int, typer.Option("--count", "-n", min=1, help="How many.")]
FromOption = Annotated[
    str,
    typer.Option(
        "--from", metavar="PLACE", help="earliest, latest, an entry's id, or a time such as 2026-01-31T12:00Z."
    ),
]
LIST = [
    Column("topic", lambda row: row["topic"], fold=True),
    Column("partitions", lambda row: row["partitions"], right=True),
    Column("messages", lambda row: row["messages"], right=True),
    Column("dead", lambda row: row["dead"], right=True),
    Column(
        "behind", lambda row: ", ".join(f"{group} {n}" for group, n in row["groups"].items()) or "no group", fold=True
    ),
]
MESSAGES = [
    Column("entry", lambda row: f"{row['partition']}:{row['entry']}"),
    Column("key", lambda row: row["key"] or "-", fold=True),
    Column("type", lambda row: row["type"] or "-"),
    Column("body", lambda row: cut(row["body"]), fold=True),
]
LETTERS = [
    Column("letter", lambda row: row["id"]),
    Column("group", lambda row: row["group"]),
    Column("tries", lambda row: row["attempts"], right=True),
    Column("why", lambda row: cut(f"{row['reason']}: {row['error']}"), fold=True),
    Column("body", lambda row: cut(row["body"]), fold=True),
]


@contextlib.asynccontextmanager
async def _open() -> AsyncIterator[Topics]:
    from ..message_bus import Topics

    async with open_session() as session:
        yield Topics(session.store, session.settings.namespace)


@contextlib.asynccontextmanager
async def _topic(name: str) -> AsyncIterator[Topic]:
    async with _open() as topics:
        known = await topics.names()
        if name not in known:
            needed = f"one of namespace {topics.namespace!r}: {', '.join(known) or 'which has none yet'}"
            raise InvalidInputError("TOPIC", found=name, needed=needed)
        yield await topics.open(name)


def _place(text: str) -> str | datetime:
    if "T" not in text:
        return text
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInputError("--from", found=text, needed="a time such as 2026-01-31T12:00Z") from error
    if when.tzinfo is None:
        raise InvalidInputError("--from", found=text, needed="a time with a zone, such as 2026-01-31T12:00Z")
    return when


@app.callback()
def topics(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List topics, if no command is named."""
    if context.invoked_subcommand is None:
        list_topics(output)


@app.command("list")
def list_topics(output: OutputOption = Output.TABLE) -> None:
    """List topics: their messages, dead letters, and how far each group is behind."""

    async def read() -> list[dict[str, Any]]:
        async with _open() as topics:
            rows = []
            for name in await topics.names():
                topic = await topics.open(name)
                row: dict[str, Any] = {"topic": name, "partitions": topic.settings.partitions}
                row["messages"], row["dead"] = await topic.sizes()
                row["groups"] = {group: (await topic.lag(group)).total for group in await topic.groups()}
                rows.append(row)
            return rows

    show_rows(finish(read()), LIST, output, empty="no topic yet; the first message makes it")


@app.command()
def read(
    topic: TopicArgument, from_: FromOption = "earliest", count: CountOption = 20, output: OutputOption = Output.TABLE
) -> None:
    """Show messages of a topic, oldest first, without being a group."""
    place = _place(from_)

    async def look() -> list[dict[str, Any]]:
        async with _topic(topic) as found:
            return [
                {
                    "partition": each.partition, "entry": each.entry, "id": each.id, "key": each.key, "type": each.type,
                    "content_type": each.content_type, "body": each.body.decode(errors="replace"),
                }
                for each in await found.read(place, count)
            ]  # fmt: skip

    show_rows(finish(look()), MESSAGES, output, empty=f"nothing in {topic} from there on")


@app.command()
def dead(topic: TopicArgument, count: CountOption = 100, output: OutputOption = Output.TABLE) -> None:
    """Show what groups could not process, and why."""

    async def look() -> list[dict[str, Any]]:
        async with _topic(topic) as found:
            return [
                {
                    "id": each.id, "group": each.group, "attempts": each.attempts, "reason": each.reason,
                    "error": each.error, "key": each.message.key, "body": each.message.body.decode(errors="replace"),
                }
                for each in await found.dead_letters(count)
            ]  # fmt: skip

    show_rows(finish(look()), LETTERS, output, empty=f"no dead letters in {topic}")


@app.command()
def redrive(
    topic: TopicArgument,
    letters: Annotated[list[str] | None, typer.Argument(metavar="LETTER...", help="Ids of dead letters.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
) -> None:
    """Put dead letters back, at the end of their partition, for the group that could not process them."""
    if bool(letters) is everything:
        raise InvalidInputError("LETTER", found="both" if everything else "none", needed="one of: ids, --all")

    async def put_back() -> None:
        async with _topic(topic) as found:
            n = await found.redrive(letters)
            say(f"{n} messages of {topic} are tried again")

    finish(put_back())


@app.command()
def replay(topic: TopicArgument, group: GroupArgument, from_: FromOption, yes: YesOption = False) -> None:
    """Set a group to another place: it gets everything from there on, once more or not at all."""
    place = _place(from_)
    confirm(f"set group {group} of {topic} to {from_}?", yes=yes)

    async def move() -> None:
        async with _topic(topic) as found:
            await found.replay(group, place)
            say(
                f"group {group} of {topic} goes on from {from_}: {(await found.lag(group)).total} messages are before it"
            )

    finish(move())


@app.command()
def trim(topic: TopicArgument) -> None:
    """Drop messages that are older, or more, than the topic keeps; never one that a group has not acknowledged."""

    async def drop() -> None:
        async with _topic(topic) as found:
            say(f"{await found.trim()} messages of {topic} are gone")

    finish(drop())


@app.command("drop-group")
def drop_group(topic: TopicArgument, group: GroupArgument, yes: YesOption = False) -> None:
    """Forget a group: nothing is kept for it any more."""
    confirm(f"forget group {group} of {topic}?", yes=yes)

    async def forget() -> None:
        async with _topic(topic) as found:
            if group not in (known := await found.groups()):
                raise InvalidInputError(
                    "GROUP", found=group, needed=f"one of {topic}: {', '.join(known) or 'none yet'}"
                )
            await found.drop_group(group)
            say(f"forgot group {group} of {topic}")

    finish(forget())
