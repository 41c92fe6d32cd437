"""Redis: the connections, the function library and the private server. The only place that imports ``redis``."""

from __future__ import annotations

from .connections import Store, Word, without_password
from .library import LIBRARY, PREFIX, Library, assemble

__all__ = ["LIBRARY", "PREFIX", "Library", "Store", "Word", "assemble", "without_password"]
