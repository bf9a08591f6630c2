"""A release of a whole model of codes, for whoever downloaded its folder: loaded, checked, and asked what comes next.

Knows no site and no round. What it needs beside the release is the base model's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fl_protocol.spec.adapters import AdapterKind
from fl_protocol.spec.tasks.concept_timeline import ConceptTimeline, Occurrences
from site_agent.jobs.job_dir import DeviceChoice
from site_agent.training.adapter_io import load_adapter
from site_agent.training.device import choose_compute
from site_agent.training.errors import AdapterUnreadableError, VocabularyInvalidError
from site_agent.training.model_files import verify_model_folder
from site_agent.training.released_weights import read_released_spec, read_released_weights
from site_agent.training.tasks.concept_timeline import load_timeline_task
from site_agent.training.timelines.vocabulary import SEP, Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReleasedTimelines:
    """A released model and the codes that it knows.

    Attributes:
        max_length: tokens that it looks at; of a longer timeline the latest.
        is_next_new: whether it learned that no code comes twice.
    """

    module: torch.nn.Module
    vocabulary: Vocabulary
    max_length: int
    is_next_new: bool

    def next_codes(self, codes: Sequence[str], *, k: int) -> dict[str, float]:
        """The ``k`` likeliest codes to come next on a timeline, the likeliest first, and the share of each.

        Args:
            codes: in the order of time; none of them where nothing is known yet.
            k: at least 1; fewer are given where no more are left.

        Raises:
            VocabularyInvalidError: the model does not know one of the codes; the facts say at which place.
        """
        ids = self.vocabulary.id_of_code
        for place, code in enumerate(codes):
            if code not in ids:
                raise VocabularyInvalidError("the model's vocabulary has no such code", place=place)
        seen = [ids[code] for code in codes]
        tokens = [self.vocabulary.tokens.index(SEP), *seen[-(self.max_length - 1) :]]
        device = next(self.module.parameters()).device
        with torch.no_grad():
            logits = self.module(input_ids=torch.tensor([tokens], device=device), use_cache=False).logits[0, -1]
        first = self.vocabulary.first_code_id
        of_codes = logits[first:].double().cpu()
        if self.is_next_new:
            of_codes[[token_id - first for token_id in seen]] = -torch.inf
        shares = torch.softmax(of_codes, dim=0)
        n_left = len(self.vocabulary.codes) - (len(set(seen)) if self.is_next_new else 0)
        best = shares.topk(min(k, n_left))
        places = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return {self.vocabulary.codes[place]: share for place, share in places}


def load(folder: Path, *, base: Path) -> ReleasedTimelines:
    """Load a release onto the shape and the vocabulary of its base model.

    Args:
        folder: the release.
        base: the base model's folder, which must be the one that the run names.

    Raises:
        AdapterUnreadableError: the folder holds no release of a whole model of codes.
        BaseModelError, VocabularyInvalidError: the base is another one, or cannot be loaded.
    """
    spec = read_released_spec(folder)
    kind = spec.adapter.kind
    if kind is not AdapterKind.FULL or not isinstance(spec.task, ConceptTimeline):
        raise AdapterUnreadableError("the release is not of a whole model of codes", kind=kind.value)
    verify_model_folder(base, spec.base_model.sha256)
    task = load_timeline_task(base, spec, choose_compute(DeviceChoice.AUTO))
    load_adapter(task.module, read_released_weights(folder, kind), layout=task.layout)
    return ReleasedTimelines(
        module=task.module,
        vocabulary=task.vocabulary,
        max_length=spec.local.max_length,
        is_next_new=spec.task.occurrences is Occurrences.FIRST,
    )
