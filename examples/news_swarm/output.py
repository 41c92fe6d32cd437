"""What the news swarm leaves behind: a folder for each story, with ``script.md`` and ``story.json``."""

from __future__ import annotations

import os
import re
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from swarm_infrastructure import Item
from swarm_infrastructure.blackboard import Event

from .engine import ENGINE_NOTE, Line, Script

__all__ = ["folder_name", "script_from_json", "script_to_json", "write_story"]


def folder_name(item: Item) -> str:
    """The name of a story's folder: readable, and the same whenever it is asked for."""
    plain = unicodedata.normalize("NFKD", str(item.payload.get("title", ""))).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:48].rstrip("-")
    return f"{words or 'story'}-{item.id[-8:]}"


def script_to_json(script: Script) -> dict[str, Any]:
    """The script as JSON data."""
    return {
        "headline": script.headline,
        "lines": [{"text": line.text, "sentence": line.sentence_position} for line in script.lines],
        "words": script.words,
        "duration_s": script.duration_s,
    }


def script_from_json(data: dict[str, Any]) -> Script:
    """The script that `script_to_json` described."""
    return Script(
        headline=data["headline"],
        lines=tuple(Line(text=line["text"], sentence_position=line["sentence"]) for line in data["lines"]),
        words=data["words"],
        duration_s=data["duration_s"],
    )


def write_story(out: Path, item: Item, events: Sequence[Event], copies: Sequence[Item] = (), *, cost: int = 0) -> Path:
    """Write a story's files, each whole or not at all. Returns its folder.

    Args:
        out: the output folder.
        item: the story, with its script.
        events: its history.
        copies: near-copies from other outlets, named as further sources.
    """
    folder = out / folder_name(item)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "script.md", _script_text(item).encode())
    _write(folder / "story.json", orjson.dumps(_story(item, events, copies, cost), option=orjson.OPT_INDENT_2))
    return folder


def _story(item: Item, events: Sequence[Event], copies: Sequence[Item], cost: int) -> dict[str, Any]:
    told = item.payload
    return {
        "id": item.id,
        "headline": told["script"]["headline"],
        "angle": told.get("angle", ""),
        "topics": told.get("topics", []),
        "sentiment": told.get("sentiment_score", 0.0),
        "verdict": told.get("verdict", {}),
        "debate": told.get("debate"),
        "script": told["script"],
        "sources": [_source(item, 1.0), *(_source(copy, copy.payload.get("similarity")) for copy in copies)],
        "related_to": told.get("related_to", []),
        "engine": _engine_of(item),
        "cost_usd": cost / 1e9,
        "history": [event.as_dict() for event in events],
    }


def _engine_of(item: Item) -> str:
    model = str(item.payload.get("model", "extractive"))
    return (
        ENGINE_NOTE if model.startswith("extractive") else f"Each line is a sentence of its source, chosen by {model}."
    )


def _source(item: Item, similarity: Any) -> dict[str, Any]:
    return {
        "id": item.id,
        "outlet": item.payload["source"],
        "title": item.payload["title"],
        "url": item.payload["url"],
        "published_at": item.payload["published_at"],
        "similarity": similarity,
    }


def _script_text(item: Item) -> str:
    script = item.payload["script"]
    lines = "\n\n".join(_plain(line["text"]) for line in script["lines"])
    told = f"{script['words']} words, {script['duration_s']:.0f} s. {_engine_of(item)}"
    return f"# {_plain(script['headline'])}\n\n{lines}\n\n---\n{told}\n"


def _plain(text: str) -> str:
    """One line of Markdown that shows the text as it is: a feed must not be able to put links or HTML in our output."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(text.split()))


def _write(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
