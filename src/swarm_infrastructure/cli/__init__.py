"""The command ``swarm``: one thin file per noun, which asks the library and shows the answer."""

from __future__ import annotations

from .app import main

__all__ = ["main"]
