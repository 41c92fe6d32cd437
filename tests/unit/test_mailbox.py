"""A mailbox: one message after the other, whether its handlers have to be waited for or not."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from swarm_infrastructure.message_bus import Message
from swarm_infrastructure.message_bus.hub import Heard
from swarm_infrastructure.message_bus.mailbox import Mailbox


def heard(payload: Any) -> Heard:
    return Heard("news", Message.create("note", "tester", payload=payload).to_json())


@asynccontextmanager
async def given_mailbox(*handlers: Callable[[Message], Any], room: int | None = None) -> AsyncIterator[Mailbox]:
    mailbox = Mailbox("a", lambda _: handlers, room=room)
    mailbox.open()
    await asyncio.sleep(0)  # its task begins to wait
    yield mailbox
    await mailbox.close()


async def test_a_message_is_handled_when_it_is_heard_if_nothing_is_in_its_way() -> None:
    got: list[Any] = []
    async with given_mailbox(lambda message: got.append(message.payload)) as mailbox:
        mailbox.post(heard(1))
        mailbox.post(heard(2))
        assert (got, len(mailbox)) == ([1, 2], 0)


async def test_what_comes_while_a_handler_is_waited_for_waits_behind_it_and_its_next_handlers() -> None:
    got, go_on = list[Any](), asyncio.Event()

    async def slow(message: Message) -> None:
        got.append(("begun", message.payload))
        await go_on.wait()
        got.append(("ended", message.payload))

    async with given_mailbox(slow, lambda message: got.append(("next", message.payload))) as mailbox:
        for n in (1, 2):
            mailbox.post(heard(n))
        await asyncio.sleep(0)
        assert (got, len(mailbox)) == ([("begun", 1)], 1)
        go_on.set()
        while len(got) < 6:
            await asyncio.sleep(0)
    assert got == [(what, n) for n in (1, 2) for what in ("begun", "ended", "next")]


async def test_what_a_handler_posts_is_handled_after_it() -> None:
    got: list[Any] = []

    def echo(message: Message) -> None:
        if message.payload < 3:
            mailbox.post(heard(message.payload + 1))
        got.append(message.payload)

    async with given_mailbox(echo) as mailbox:
        mailbox.post(heard(1))
        while len(got) < 3:
            await asyncio.sleep(0)
    assert got == [1, 2, 3]


async def test_a_handler_that_raises_or_says_cancelled_hinders_neither_the_next_nor_the_next_message() -> None:
    got: list[Any] = []

    def cancelled(_: Message) -> None:
        raise asyncio.CancelledError

    async def cancelled_later(_: Message) -> None:
        raise asyncio.CancelledError

    handlers = (lambda _: 1 / 0, cancelled, cancelled_later, lambda message: got.append(message.payload))
    async with given_mailbox(*handlers) as mailbox:
        mailbox.post(heard(1))
        mailbox.post(heard(2))
        while len(got) < 2:
            await asyncio.sleep(0)
    assert got == [1, 2]


async def test_what_a_handler_sets_in_its_context_stays_with_its_agent() -> None:
    whose = contextvars.ContextVar("whose", default="nobody's")
    seen: list[str] = []

    async def later(_: Message) -> None:
        seen.append(whose.get())

    async with given_mailbox(lambda _: whose.set("a's"), later) as mailbox:
        mailbox.post(heard(1))
        assert whose.get() == "nobody's"
        while not seen:
            await asyncio.sleep(0)
    assert seen == ["a's"]


async def test_a_handler_that_has_not_begun_when_the_mailbox_closes_never_does() -> None:
    async def never(_: Message) -> None:
        raise AssertionError("it ran")

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as: a coroutine was never awaited
        async with given_mailbox(never) as mailbox:
            mailbox.post(heard(1))
        mailbox.post(heard(2))
        gc.collect()
