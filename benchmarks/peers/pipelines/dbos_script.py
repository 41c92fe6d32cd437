"""DBOS on SQLite: a workflow of four steps, each step's output recorded."""

from __future__ import annotations

import logging
import os
import tempfile
from typing import Any

from dbos import DBOS

from ..probe import make_payload
from . import measure, run

AT_ONCE = 10  # fifty at once wait for SQLite's one writer, and time out


@DBOS.step()
async def scout(payload: dict[str, Any]) -> dict[str, Any]:
    return payload


@DBOS.step()
async def analyse(payload: dict[str, Any]) -> dict[str, Any]:
    return payload


@DBOS.step()
async def write(payload: dict[str, Any]) -> dict[str, Any]:
    return payload


@DBOS.step()
async def publish(payload: dict[str, Any]) -> dict[str, Any]:
    return payload


@DBOS.workflow()
async def newsroom(payload: dict[str, Any]) -> dict[str, Any]:
    return await publish(await write(await analyse(await scout(payload))))


async def main() -> None:
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite:///{folder}/dbos.sqlite"
        DBOS(
            config={
                "name": "peers",
                "system_database_url": database,
                "run_admin_server": False,
                "log_level": "CRITICAL",
            }
        )
        DBOS.launch()
        await measure(lambda number: newsroom(make_payload(number)), at_once=AT_ONCE)
        os._exit(0)  # what it has measured is told; its threads would go on for a while


if __name__ == "__main__":
    run(main)
