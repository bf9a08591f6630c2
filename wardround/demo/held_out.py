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
    records: list[tuple[int, Document]] = []
    with data_file.open(encoding="utf-8") as lines:
        for line in lines:
            record = document_from_text(line, source=data_file.name)
            value = split_hash(record)
            if value < holdout_fraction * 2**64 and len(text_of(record, "prompt")) <= _LONGEST_PROMPT:
                records.append((value, record))
    if not records:
        raise DemoFailedError(
            f"{data_file.name} holds no record to evaluate on", advice="Raise evaluation.holdout_fraction."
        )
    _, chosen = min(records, key=lambda pair: (pair[0], json.dumps(pair[1], sort_keys=True)))
    return HeldOutRecord(prompt=text_of(chosen, "prompt"), completion=text_of(chosen, "completion"))


def split_hash(record: Document) -> int:
    """The place of a record in the split, uint64: all records of one patient fall on one side."""
    key = record.get("patient_id") or record.get("id")
    return int.from_bytes(hashlib.sha256(f"{_SPLIT}{key}".encode()).digest()[:8], "big")
