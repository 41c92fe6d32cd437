"""``swarm config``: the settings of this process, and where each comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from .render import Column, Output, OutputOption, help_if_alone, show_rows

if TYPE_CHECKING:
    from ..config import Settings

__all__ = ["app"]

app = typer.Typer(
    help="The settings: read from the environment and a .env file.", callback=help_if_alone, invoke_without_command=True
)

COLUMNS = [
    Column("variable", lambda row: row["variable"]),
    Column("value", lambda row: "-" if row["value"] is None else row["value"], fold=True),
    Column("from", lambda row: row["from"]),
]


@app.command("show")
def show_config(output: OutputOption = Output.TABLE) -> None:
    """Show every setting, passwords masked."""
    from ..config import Settings

    show_rows(_rows(Settings.load()), COLUMNS, output)


def _rows(settings: Settings) -> list[dict[str, Any]]:
    from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

    kind = type(settings)
    sources = {"environment": EnvSettingsSource(kind)(), ".env": DotEnvSettingsSource(kind)()}  # the first one wins
    rows = []
    for name, field in kind.model_fields.items():
        variable = str(field.validation_alias)
        found = next((source for source, values in sources.items() if variable in values), "default")
        rows.append({"variable": variable, "value": _shown(getattr(settings, name)), "from": found, "setting": name})
    return rows


def _shown(value: Any) -> Any:
    """*value* as JSON data, passwords masked."""
    from pathlib import Path

    from pydantic import SecretStr

    from ..config import masked_url

    if isinstance(value, SecretStr):
        secret = value.get_secret_value()
        return masked_url(secret) if "://" in secret else "***"
    return str(value) if isinstance(value, Path) else value
