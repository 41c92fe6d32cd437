"""What a part of the audit found: breaches, and what it could not judge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .audit import Breach

__all__ = ["Findings"]


@dataclass(slots=True, kw_only=True)
class Findings:
    """What a part of the audit found."""

    breaches: list[Breach] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)  #: invariant → what is worth knowing of it, and is no breach
    skipped: dict[str, str] = field(default_factory=dict)  #: invariant → why it could not be judged

    def breach(self, invariant: str, item: str, what: str) -> None:
        """One more breach."""
        self.breaches.append(Breach(invariant=invariant, item=item, what=what))

    def add(self, other: Findings) -> None:
        """All that *other* has as well."""
        self.breaches += other.breaches
        self.notes |= other.notes
        self.skipped |= other.skipped

    def only(self, keep: Iterable[Breach]) -> Findings:
        """The same with these breaches alone."""
        wanted = {(breach.invariant, breach.item) for breach in keep}
        kept = [each for each in self.breaches if (each.invariant, each.item) in wanted]
        return Findings(breaches=kept, notes=self.notes, skipped=self.skipped)
