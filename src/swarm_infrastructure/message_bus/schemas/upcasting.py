"""Upcasters: functions that turn a message of an old version into one of the next, where a default can't do it.

They run in a chain when newer code reads an old message, before it is validated. A link may be missing: then the two versions
are compatible, and reading the older one with the newer schema is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ...errors import InvalidInputError

__all__ = ["Upcaster", "Upcasters"]

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]  #: a message of version n → the same as version n+1
Function = TypeVar("Function", bound=Upcaster)


class Upcasters:
    """The upcasters that this process knows."""

    def __init__(self) -> None:
        self._links: dict[tuple[str, int], Upcaster] = {}

    def add(self, subject: str, version: int) -> Callable[[Function], Function]:
        """Decorates the function that takes a message of *subject* from *version* to the next one.

        Raises:
            InvalidInputError: there is one already.
        """

        def remember(function: Function) -> Function:
            if (subject, version) in self._links:
                raise InvalidInputError(
                    f"upcaster of {subject!r} from version {version}", found="a second one", needed="one for each step"
                )
            self._links[subject, version] = function
            return function

        return remember

    def last(self, subject: str, version: int, to: int) -> int:
        """The version that the last upcaster between two versions leads to; *version* if there is none."""
        return max((each + 1 for each in range(version, to) if (subject, each) in self._links), default=version)

    def run(self, subject: str, data: Any, version: int, to: int) -> Any:
        """*data* of *version* as one of version *to*: each upcaster on the way in turn.

        Raises:
            InvalidInputError: an upcaster failed.
        """
        for each in range(version, to):
            if function := self._links.get((subject, each)):
                try:
                    data = function(data)
                except Exception as error:  # whatever the user's function meets, the message can't be read
                    raise InvalidInputError(
                        f"upcaster of {subject!r} from version {each} to {each + 1}",
                        found=f"{type(error).__name__}: {error}", needed="a message of the next version",
                    ) from error  # fmt: skip
        return data
