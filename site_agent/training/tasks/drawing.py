"""Which records a round trains on, and in which order: drawn from a seed, whatever the task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from site_agent.training.errors import NoUsableRecordsError
from site_agent.training.task_half import EncodedRecord, Fit, TaskExample


class Encoder(Protocol):
    """Turns records into examples."""

    def encode(self, record: Any) -> EncodedRecord:  # see LoadedTask
        """One record."""
        ...


@dataclass(slots=True, kw_only=True)
class FitCounts:
    """How many records were looked at, by how they fitted; what was left out is counted, never silent."""

    whole: int = 0
    cut: int = 0
    no_room: int = 0

    def count(self, fit: Fit) -> None:
        """Count one record."""
        match fit:
            case Fit.WHOLE:
                self.whole += 1
            case Fit.CUT:
                self.cut += 1
            case Fit.NO_ROOM:
                self.no_room += 1


def encode_records(records: Iterable[object], encoder: Encoder, counts: FitCounts) -> Iterator[TaskExample]:
    """The examples of all records that have room, in order."""
    for record in records:
        encoded = encoder.encode(record)
        counts.count(encoded.fit)
        if encoded.example is not None:
            yield encoded.example


def sample_examples(
    records: Sequence[object], encoder: Encoder, *, n_examples: int, seed: int, counts: FitCounts
) -> list[TaskExample]:
    """Draw a round's examples: without replacement while records last, then all of them again in another order.

    Args:
        records: those to train on.
        encoder: turns them into examples.
        n_examples: how many the round needs.
        seed: uint64; the same seed draws the same examples.
        counts: where records that did not fit are counted.

    Raises:
        NoUsableRecordsError: no record gives an example, or there is none.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    examples: list[TaskExample] = []
    while len(examples) < n_examples:
        order = generator.permutation(len(records))
        before = len(examples)
        for example in encode_records((records[place] for place in order), encoder, counts):
            examples.append(example)
            if len(examples) == n_examples:
                return examples
        if len(examples) == before:
            raise NoUsableRecordsError("no record gives an example to train on", records=len(records))
    return examples
