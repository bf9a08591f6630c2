"""One held-out record of a site, to show what the model says to it.

It is the record with the lowest hash by the rule of the trainer's split. The demonstration owns its sites; nobody else
could look.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from wardround.documents import Document, document_from_text, text_of
from wardround.errors import DemoFailedError

_SPLIT = "wardround/split/"
_LONGEST_PROMPT = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRecord:
    """A record that no site trains on."""

    prompt: str
    completion: str


def first_held_out(data_file: Path, *, holdout_fraction: float) -> HeldOutRecord:
    """The held-out record with the lowest hash whose prompt is not too long to show.

    Raises:
        DemoFailedError: nothing is held out.
    """
    line = first_held_out_line(data_file, holdout_fraction=holdout_fraction)
    chosen = document_from_text(line, source=data_file.name)
    return HeldOutRecord(prompt=text_of(chosen, "prompt"), completion=text_of(chosen, "completion"))


def first_held_out_line(data_file: Path, *, holdout_fraction: float) -> str:
    """That record's line, as it stands in the file.

    Raises:
        DemoFailedError: nothing is held out.
    """
    lines: list[tuple[int, str, str]] = []
    with data_file.open(encoding="utf-8") as file:
        for line in file:
            record = document_from_text(line, source=data_file.name)
            value = split_hash(record)
            if value < holdout_fraction * 2**64 and len(text_of(record, "prompt")) <= _LONGEST_PROMPT:
                lines.append((value, json.dumps(record, sort_keys=True), line))
    if not lines:
        raise DemoFailedError(
            f"{data_file.name} holds no record to evaluate on", advice="Raise evaluation.holdout_fraction."
        )
    return min(lines)[2]


def split_hash(record: Document) -> int:
    """The place of a record in the split, uint64: all records of one patient fall on one side."""
    key = record.get("patient_id") or record.get("id")
    return int.from_bytes(hashlib.sha256(f"{_SPLIT}{key}".encode()).digest()[:8], "big")
