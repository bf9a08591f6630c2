"""Numbers of attempts across restores. Pure.

A restored coordinator has forgotten which attempts it opened after the backup. Sites have not: they refuse what does
not rise, and their training seeds and keys are bound to the attempt. So each epoch has a range of attempts of its own,
above all that an earlier epoch can have used.
"""

from __future__ import annotations

EPOCH_STRIDE = 100_000
"""How many attempts at a round an epoch has to itself; at the longest pause between two they last almost two years."""


def lowest_attempt(epoch: int) -> int:
    """The first attempt at a round that this epoch may make."""
    return epoch * EPOCH_STRIDE
