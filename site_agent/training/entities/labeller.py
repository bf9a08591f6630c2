"""The seam of an entity labeller. UMLS is licensed, so what ships is a lexicon; a site may bring another."""

from __future__ import annotations

from typing import Protocol


class EntityLabeller(Protocol):
    """Says of each class whether a text speaks of it."""

    def label(self, text: str) -> tuple[int, ...]:
        """For each class, in the order of the run's: 1 affirmed, -1 denied, 0 not spoken of."""
        ...
