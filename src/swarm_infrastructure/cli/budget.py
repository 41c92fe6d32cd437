"""``swarm budget``: what may be spent and what was; raise a cap, and whoever stands still for want of money goes on."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError
from .render import BoardOption, Column, Output, OutputOption, clock, say, show, show_json, show_rows, table
from .session import finish, open_session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ..cost_manager import CostManager, Limits

__all__ = ["app"]

app = typer.Typer(help="What may be spent, and what was.", invoke_without_command=True)

ScopeArgument = Annotated[
    str, typer.Argument(metavar="SCOPE", help="swarm, role:NAME, agent:ID (or an agent's id), task:ID, tag:NAME, tier:NAME.")
]  # fmt: skip
DayOption = Annotated[str | None, typer.Option("--day", metavar="DOLLARS", help="A calendar day.")]
HourOption = Annotated[str | None, typer.Option("--hour", metavar="DOLLARS", help="A calendar hour.")]
TotalOption = Annotated[str | None, typer.Option("--total", metavar="DOLLARS", help="For ever.")]
TokensOption = Annotated[int | None, typer.Option("--tokens", help="Tokens a day.")]
RequestsOption = Annotated[int | None, typer.Option("--requests", help="Calls a day.")]


@asynccontextmanager
async def _costs(board: str | None) -> AsyncIterator[CostManager]:
    from ..cost_manager import CostManager

    async with open_session() as session:
        blackboard = await session.board(board)
        yield CostManager.of(blackboard, tz=session.settings.budget_tz)


def _dollars(nano: int | None) -> str:
    from ..cost_manager.money import shown

    return "-" if nano is None else shown(nano)


SHOWN = [
    Column("scope", lambda row: row["scope"], fold=True),
    Column("window", lambda row: row["window"]),
    Column("spent", lambda row: _dollars(row["spent_nano"]), right=True),
    Column("held", lambda row: _dollars(row["held_nano"]), right=True),
    Column("limit", lambda row: _dollars(row["limit_nano"]), right=True),
    Column("left", lambda row: _dollars(row["left_nano"]), right=True),
    Column("calls", lambda row: row["requests"], right=True),
    Column("tokens", lambda row: row["tokens"], right=True),
]


@app.callback()
def budget(context: typer.Context, board: BoardOption = None, output: OutputOption = Output.TABLE) -> None:
    """Show every budget, if no command is named."""
    if context.invoked_subcommand is None:
        show_budgets(None, board, output)


@app.command("show")
def show_budgets(
    scope: Annotated[
        str | None, typer.Argument(metavar="SCOPE", help="One scope; all that have a limit, without.")
    ] = None,
    board: BoardOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what was spent, what is held for calls under way, and what is left."""

    async def read() -> tuple[list[dict[str, Any]], list[str]]:
        async with _costs(board) as costs:
            limits = await costs.ledger.limits()
            names = [_scope(scope)] if scope else sorted({"swarm", *(each for each in limits if "/" not in each)})
            rows = []
            for name in names:
                for window, account in (await costs.ledger.accounts(name)).items():
                    if scope or account.limit is not None or name == "swarm":
                        rows.append(
                            {
                                "scope": name, "window": window, "spent_nano": account.settled, "held_nano": account.held,
                                "limit_nano": account.limit, "left_nano": account.left, "requests": account.requests,
                                "tokens": account.tokens,
                            }
                        )  # fmt: skip
            return rows, [str(each) for each in await costs.paused()]

    rows, paused = finish(read())
    show_rows(rows, SHOWN, output, empty="no budget is set; set one: swarm budget set SCOPE --day DOLLARS")
    for line in paused:
        say(f"paused: {line}")


@app.command("set")
def set_budget(
    scope: ScopeArgument,
    day: DayOption = None,
    hour: HourOption = None,
    total: TotalOption = None,
    tokens: TokensOption = None,
    requests: RequestsOption = None,
    on_exceeded: Annotated[str, typer.Option("--on-exceeded", help="pause, downgrade or fail.")] = "pause",
    board: BoardOption = None,
) -> None:
    """Set the limits of a scope; those that are not named are taken away."""

    async def put() -> None:
        from ..cost_manager import Budget

        if all(each is None for each in (day, hour, total, tokens, requests)):
            raise InvalidInputError(
                "limits", found="none", needed="one of --day, --hour, --total, --tokens, --requests"
            )
        limits = Budget(
            scope=_scope(scope), daily_limit=day, hourly_limit=hour, run_limit=total, max_tokens=tokens,
            max_requests=requests, on_exceeded=on_exceeded,  # type: ignore[arg-type]
        )  # fmt: skip
        async with _costs(board) as costs:
            await costs.set_budget(limits)
            say(f"{limits.scope}: {_listed((await costs.ledger.limits())[limits.scope])}")

    finish(put())


@app.command("raise")
def raise_budget(
    scope: ScopeArgument,
    day: DayOption = None,
    hour: HourOption = None,
    total: TotalOption = None,
    tokens: TokensOption = None,
    requests: RequestsOption = None,
    board: BoardOption = None,
) -> None:
    """Raise limits of a scope to new amounts and leave the others.

    Agents that stood still for want of money go on within a second.
    """

    async def lift() -> None:
        from ..cost_manager.money import to_nano

        name, dollars = _scope(scope), {"day": day, "hour": hour, "total": total}
        wanted = {
            (window, "usd"): to_nano(amount, field=f"--{window}") for window, amount in dollars.items() if amount is not None
        }  # fmt: skip
        wanted |= {("day", unit): n for unit, n in (("tokens", tokens), ("requests", requests)) if n is not None}
        if not wanted:
            raise InvalidInputError(
                "limits", found="none", needed="one of --day, --hour, --total, --tokens, --requests"
            )
        async with _costs(board) as costs:
            now = (await costs.ledger.limits()).get(name)
            for (window, unit), amount in wanted.items():
                old = now.most.get((window, unit)) if now else None
                if old is None or amount < old:
                    raise InvalidInputError(
                        f"--{window if unit == 'usd' else unit}", found=_amount(unit, amount),
                        needed=f"more than the {_amount(unit, old)} of now" if old is not None else "a limit that is set",
                        step=f"to lower it or to set a first one: swarm budget set {name}",
                    )  # fmt: skip
            before = {each.who for each in await costs.paused()}
            for (window, unit), amount in wanted.items():
                limits = await costs.ledger.change_limit(name, window, unit, amount)
            say(f"{name}: {_listed(limits)}")
            after = {each.who: each for each in await costs.paused()}
            for who in sorted(before):
                say(f"still paused: {after[who]}" if who in after else f"goes on: {who}")

    finish(lift())


@app.command()
def report(
    scope: Annotated[str | None, typer.Argument(metavar="AGENT", help="One agent; everybody, without.")] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="How far back.")] = 7,
    board: BoardOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what was spent, by agent, role, tier, model, task type and day, and what would save money."""

    async def read() -> tuple[dict[str, Any], list[str]]:
        async with _costs(board) as costs:
            if scope:
                return await costs.get_agent_report(scope.removeprefix("agent:"), days), []
            return await costs.get_global_report(days), await costs.get_optimization_recommendations(days)

    found, advice = finish(read())
    if output is not Output.TABLE:
        show_json(found | {"recommendations": advice}, output)
        return
    rows = [{"by": "all", "what": "", **{name: found[name] for name in ("cost", "calls", "tokens")}}]
    for group in ("by_agent", "by_role", "by_tier", "by_model", "by_task_type", "by_day"):
        ordered = sorted(found[group].items(), key=lambda each: -each[1]["cost"])
        rows += [{"by": group[3:].replace("_", " "), "what": name, **row} for name, row in ordered[:20]]
    show(table(rows, REPORTED))
    if found["complete_since_ms"]:
        since = clock(found["complete_since_ms"])
        say(f"the ledger holds no lines from before {since}; to keep more, raise SWARM_LEDGER_KEEP")
    for line in advice:
        say(f"to save: {line}")


REPORTED = [
    Column("by", lambda row: row["by"]),
    Column("", lambda row: row["what"], fold=True),
    Column("cost", lambda row: f"${row['cost']:.6f}", right=True),
    Column("calls", lambda row: row["calls"], right=True),
    Column("tokens", lambda row: row["tokens"], right=True),
]

LEDGER = [
    Column("at", lambda row: clock(row["at_ms"])),
    Column("kind", lambda row: row["kind"]),
    Column("agent", lambda row: row["facts"].get("agent_id") or "-", fold=True),
    Column("task", lambda row: row["facts"].get("task_id") or "-", fold=True),
    Column("model", lambda row: row["facts"].get("model") or "-"),
    Column("tokens", lambda row: row["tokens"], right=True),
    Column("reserved", lambda row: _dollars(row["reserved_nano"]), right=True),
    Column("cost", lambda row: _dollars(row["usd_nano"]), right=True),
]


@app.command()
def ledger(
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many, newest first.")] = 20,
    board: BoardOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the ledger's newest lines: one for each call that was settled, booked at the estimate, or corrected."""

    async def read() -> list[dict[str, Any]]:
        async with _costs(board) as costs:
            return [
                {
                    "at_ms": entry.at_ms, "kind": entry.kind, "usd_nano": entry.usd, "reserved_nano": entry.reserved,
                    "tokens": entry.tokens, "reservation": entry.reservation, "facts": dict(entry.facts),
                }
                async for entry in costs.ledger.entries(newest=True, count=limit)
            ]  # fmt: skip

    show_rows(finish(read()), LEDGER, output, empty="nothing was spent yet")


def _scope(scope: str) -> str:
    from ..cost_manager.budgets import check_scope

    return check_scope(scope if scope == "swarm" or ":" in scope else f"agent:{scope}")


def _amount(unit: str, amount: int | None) -> str:
    return _dollars(amount) if unit == "usd" else f"{amount} {unit}"


def _listed(limits: Limits) -> str:
    parts = [f"{_amount(unit, most)} per {window}" if window != "total" else f"{_amount(unit, most)} in total"
             for (window, unit), most in limits.most.items()]  # fmt: skip
    return (", ".join(parts) or "no limit") + f"; on a breach: {limits.on_exceeded}"
