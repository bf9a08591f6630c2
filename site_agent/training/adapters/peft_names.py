"""What peft calls things, and what it warns of without need."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

PEFT_NAME = "default"
"""The name of the one adapter on a model; it is no part of the names that peft saves."""


@contextmanager
def peft_warnings_silenced() -> Iterator[None]:
    """Silence what peft causes by asking transformers for a property whose name transformers has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield
