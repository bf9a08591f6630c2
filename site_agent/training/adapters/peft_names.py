"""What all adapters have in common: peft's name for the one adapter on a model, and its warnings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

ADAPTER_NAME = "default"


@contextmanager
def peft_warnings_silenced() -> Iterator[None]:
    """Silence what peft causes by asking transformers for a property whose name transformers has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield
