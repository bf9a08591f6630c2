"""What peft calls things, and what it warns of without need."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

PEFT_NAME = "default"
"""The name of the one adapter on a model; it is no part of the names that peft saves."""


VIRTUAL_TOKENS_NAME = "prompt_embeddings"
"""What peft saves the one tensor of a soft prompt or a prefix as, which on the model is called otherwise."""


def saved_name(name: str) -> str:
    """The name that peft saves a trained parameter under."""
    if name == f"prompt_encoder.{PEFT_NAME}.embedding.weight":
        return VIRTUAL_TOKENS_NAME
    return name.replace(f".{PEFT_NAME}.", ".").removesuffix(f".{PEFT_NAME}")


@contextmanager
def peft_warnings_silenced() -> Iterator[None]:
    """Silence a deprecated name, which peft asks transformers for, and what generation gives peft in vain."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Position ids are not supported.*", category=UserWarning)
        yield
