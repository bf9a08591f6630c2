"""``task: {kind: concept-timeline}``: a causal model learns what comes next on timelines of codes (MedGPT).

Kraljevic et al. 2021 (arXiv 2107.03134). The vocabulary is named by its digest, for it is the model's shape and the
meaning of its rows; it comes from a run of its own (``concept-vocabulary``) or from a public list.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fl_protocol.ids import Sha256Hex
from fl_protocol.spec.faults import Reader
from fl_protocol.spec.tasks.task_spec import TaskKind

MAX_DAYS = 36_525


class Occurrences(StrEnum):
    """Which of a code's events are on a timeline."""

    FIRST = "first"
    """The first only: what comes next is then always new."""
    ALL = "all"
    """Each, but a code once a day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptTimeline:
    """Of each patient's timeline the codes carry loss, and what is said of the person none.

    Attributes:
        vocabulary_sha256: of ``vocab.txt`` in the base model's folder.
        min_tokens: patients with fewer known codes are left out.
        occurrences: which of a code's events count.
        time_range_days: how far the scope ``time-range`` of the metrics looks.
    """

    vocabulary_sha256: Sha256Hex
    min_tokens: int
    occurrences: Occurrences
    time_range_days: int

    @property
    def kind(self) -> TaskKind:
        """Concept timelines."""
        return TaskKind.CONCEPT_TIMELINE

    @property
    def loss_unit(self) -> str:
        """Codes."""
        return "codes"

    def to_document(self) -> dict[str, object]:
        """The section as JSON values."""
        return {
            "kind": self.kind.value,
            "vocabulary_sha256": self.vocabulary_sha256,
            "min_tokens": self.min_tokens,
            "occurrences": self.occurrences.value,
            "time_range_days": self.time_range_days,
        }


def read_concept_timeline(section: Reader) -> ConceptTimeline:
    """``{vocabulary_sha256, min_tokens=5, occurrences=first, time_range_days=365}``."""
    return ConceptTimeline(
        # A missing digest is a fault of the section, and then there is no spec.
        vocabulary_sha256=section.digest("vocabulary_sha256") or Sha256Hex(""),
        min_tokens=section.integer("min_tokens", low=1, high=1000, default=5),
        occurrences=section.choice("occurrences", Occurrences, default=Occurrences.FIRST),
        time_range_days=section.integer("time_range_days", low=0, high=MAX_DAYS, default=365),
    )
