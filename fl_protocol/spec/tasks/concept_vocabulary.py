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

    Safety: whoever has the sum, each site among them, sees the counts that reached ``site_minimum``. With the threshold
    itself as the minimum, no code that fewer patients have is in the sum at all.
    """

    threshold: int
    min_sites: int
    site_minimum: int

    @property
    def hides_rare_codes(self) -> bool:
        """Whether the sum is zero for each code that fewer than ``threshold`` patients have, at all sites together."""
        return self.site_minimum >= self.threshold

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
    """``{threshold, min_sites}``, and ``site_minimum``, where the sum is to show more than codes of the threshold."""
    threshold = section.integer("threshold", low=1, high=_MOST)
    return ConceptVocabulary(
        threshold=threshold,
        min_sites=section.integer("min_sites", low=SMALLEST_MIN_SITES, high=10_000),
        site_minimum=section.integer("site_minimum", low=1, high=_MOST, default=threshold),
    )
