"""The audit of checkpoints: is each of them whole, and of no claim that is newer than the item's? Reads Redis and nothing else.

====  ==================================================================================================
I14   a checkpoint fits its checksum, has an end, and its token is not above the newest of its item
====  ==================================================================================================
"""

from __future__ import annotations

from ..blackboard.findings import Findings
from ..blackboard.items import read_item
from ..errors import InvalidInputError
from ..keys import BoardKeys
from ..store import Store
from .checkpoints import read_checkpoint

__all__ = ["audit_checkpoints"]

PAGE = 1000


async def audit_checkpoints(store: Store, keys: BoardKeys) -> Findings:
    """Every breach of I14 on one board."""
    found, prefix, cursor = Findings(), keys.checkpoints_of(""), b"0"
    pattern, tasks = prefix.replace("[", "\\[").replace("*", "\\*") + "*", set[str]()
    while True:
        cursor, page = await store.command("SCAN", cursor, "MATCH", pattern, "COUNT", PAGE)
        tasks |= {key.decode().removeprefix(prefix) for key in page}
        if int(cursor) == 0:
            break
    for task in sorted(tasks):
        # the record after the checkpoint: tokens only grow
        stages = await store.command("HGETALL", keys.checkpoints_of(task))
        record = await store.command("HGET", keys.items, task)
        for stage, text in stages.items():
            try:
                _, facts = read_checkpoint(task, stage.decode(errors="replace"), text)
                newest = read_item(task, record, None).token if record is not None else None
            except InvalidInputError as error:
                found.breach("I14", task, str(error))
                continue
            if newest is not None and facts["token"] > newest:
                what = f"checkpoint {facts['stage']!r} has token {facts['token']}, the item's newest is {newest}"
                found.breach("I14", task, what)
            if facts["expires_at"] <= 0:
                found.breach("I14", task, f"checkpoint {facts['stage']!r} has no end")
    return found
