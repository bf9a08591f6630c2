"""The seam through which secrets come in. A role draws; where the bytes come from is the shell's business."""

from __future__ import annotations

from typing import Protocol


class Entropy(Protocol):
    """A source of uniform, unpredictable bytes. Safety: the same bytes twice would undo every mask made from them."""

    def draw(self, n_bytes: int) -> bytes:
        """``n_bytes`` fresh bytes."""
        ...
