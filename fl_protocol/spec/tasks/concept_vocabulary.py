"""``task: {kind: concept-vocabulary}``: which codes of a public list enough patients at enough sites have.

The list is the run's base (``base_model``): a folder of codes whose digest the RunSpec names. A vocabulary is a run of
its own, for it is the shape of the model that a later run trains.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.spec.faults import Reader
from fl_protocol.spec.tasks.task_spec import TaskKind

SMALLEST_MIN_SITES = 2
_MOST = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptVocabulary:
    """A code is published where both bounds are met.

    Attributes:
        threshold: patients, over all sites.
        min_sites: sites that have the code; at least 2, so that no published code is one site's alone.
        site_minimum: a site's count below it is left out at the site, before anything is masked.
    """

    threshold: int
    min_sites: int
    site_minimum: int

    @property
    def kind(self) -> TaskKind:
        """Concept vocabulary."""
        return TaskKind.CONCEPT_VOCABULARY

    @property
    def loss_unit(self) -> str:
        """There is no loss."""
        return "nothing: patients are counted"

    def to_document(self) -> dict[str, object]:
        """The section as JSON values."""
        return {
            "kind": self.kind.value,
            "threshold": self.threshold,
            "min_sites": self.min_sites,
            "site_minimum": self.site_minimum,
        }


def read_concept_vocabulary(section: Reader) -> ConceptVocabulary:
    """``{threshold, min_sites, site_minimum}``: each is a choice that a steward reads, so none has a default."""
    return ConceptVocabulary(
        threshold=section.integer("threshold", low=1, high=_MOST),
        min_sites=section.integer("min_sites", low=SMALLEST_MIN_SITES, high=10_000),
        site_minimum=section.integer("site_minimum", low=1, high=_MOST),
    )
