"""How many weights a base model has, from the headers of its safetensors files: nothing of them is loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path

_MAX_HEADER_BYTES = 100 << 20


def count_weights(folder: Path) -> int | None:
    """The number of weights in a model's folder; None where there is none to be read.

    The format is a length (8 bytes, little endian), a JSON header with each tensor's shape, and the tensors
    (https://github.com/huggingface/safetensors, "Format").
    """
    files = sorted(folder.glob("*.safetensors"))
    try:
        return sum(_count(file) for file in files) if files else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _count(file: Path) -> int:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= _MAX_HEADER_BYTES:
            raise ValueError
        header = json.loads(stream.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
