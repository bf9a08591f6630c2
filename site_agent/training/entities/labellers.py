"""Which labellers there are: one row a name that a RunSpec may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fl_protocol.spec.tasks.image_text_contrastive import Labeller
from fl_protocol.spec.tasks.prompt_bank import ImageClass
from site_agent.training.entities.labeller import EntityLabeller
from site_agent.training.entities.lexicon import LexiconLabeller


def _by_lexicon(classes: Sequence[ImageClass]) -> EntityLabeller:
    """By the terms of each class, and by its name."""
    return LexiconLabeller([(one.name, *one.terms) for one in classes])


LABELLERS: Mapping[Labeller, Callable[[Sequence[ImageClass]], EntityLabeller]] = {
    Labeller.LEXICON: _by_lexicon,
}
"""Makes the labeller of a run's classes."""
