"""Concept timelines (MedGPT): a causal model over a vocabulary of codes learns what comes next on a patient's timeline.

Loss is on codes only. An evaluation counts, beside the loss, how the codes to come were ranked.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from fl_protocol.spec.metrics import METRICS, counts_of, ranking_count
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.tasks.concept_timeline import ConceptTimeline
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.training.adapter_io import adapter_layout, attach_adapter
from site_agent.training.causal_model import check_positions, layout_without_weights, load_base, load_config
from site_agent.training.device import Compute
from site_agent.training.errors import BaseModelInvalidError, VocabularyInvalidError
from site_agent.training.task_half import EncodedRecord, EvaluatedBatch, LossSum, TaskHalf
from site_agent.training.timelines.encoding import PAD_ID, TimelineEncoder, TimelineExample
from site_agent.training.timelines.ranking import (
    KS,
    Novelty,
    RankingCounts,
    Scope,
    count_timeline,
    rank_codes,
)
from site_agent.training.timelines.timeline import Timeline
from site_agent.training.timelines.vocabulary import VOCABULARY_FILE, Vocabulary, read_vocabulary

_EVERY = tuple(itertools.product(Scope, Novelty))
_NEEDED = frozenset(counts_of(METRICS))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimelineTask:
    """A causal model over codes with its adapter. See ``LoadedTask``.

    Invariant: the model has a row for each token of the vocabulary, in the vocabulary's order.
    """

    module: torch.nn.Module
    layout: AdapterLayout
    vocabulary: Vocabulary
    encoder: TimelineEncoder
    time_range_days: int

    def encode(self, record: Timeline) -> EncodedRecord:
        """See ``TimelineEncoder.encode``."""
        return self.encoder.encode(record)

    def train_loss(self, examples: Sequence[TimelineExample]) -> LossSum:
        """Summed over codes."""
        logits = predicting_logits(self.module, examples)
        return LossSum(loss=_code_loss(logits, examples), n_units=len(logits))

    def evaluate(self, examples: Sequence[TimelineExample]) -> EvaluatedBatch:
        """The loss, and for each scope and novelty how the codes to come were ranked."""
        logits = predicting_logits(self.module, examples)
        loss = _code_loss(logits, examples)
        first = self.vocabulary.first_code_id
        totals = dict.fromkeys(_EVERY, RankingCounts())
        scores = logits[:, first:].double().cpu().numpy()
        start = 0
        for example in examples:
            # The first row ranks what comes before any code was seen, and is no prediction.
            of_example = scores[start + 1 : start + example.n_units]
            start += example.n_units
            codes = [token_id - first for token_id in example.code_ids]
            lists = {novelty: rank_codes(of_example, codes, novelty) for novelty in Novelty}
            for scope, novelty in _EVERY:
                totals[scope, novelty] += count_timeline(
                    lists[novelty], codes, example.days, scope=scope, novelty=novelty, range_days=self.time_range_days
                )
        return EvaluatedBatch(loss_sum=float(loss), n_units=len(logits), counts=named_counts(totals))


def predicting_logits(module: torch.nn.Module, examples: Sequence[TimelineExample]) -> torch.Tensor:
    """The logits that predict each code of each example, in order.

    Returns:
        float32 or float64, shape (sum of n_units, tokens).
    """
    longest = max(example.n_tokens for example in examples)
    input_ids = torch.full((len(examples), longest), PAD_ID)
    for row, example in enumerate(examples):
        input_ids[row, : example.n_tokens] = torch.tensor(example.token_ids)
    device = next(module.parameters()).device
    # Padding is on the right: a causal model sees none of it before a code, so no mask is needed.
    # Virtual tokens stand before the real ones, and a model that has them answers for them, too.
    logits = module(input_ids=input_ids.to(device), use_cache=False).logits[:, -longest:]
    rows = [row for row, example in enumerate(examples) for _ in example.targets]
    columns = [place - 1 for example in examples for place in example.targets]
    chosen = logits[torch.tensor(rows, device=device), torch.tensor(columns, device=device)]
    return chosen if chosen.dtype == torch.float64 else chosen.float()


def named_counts(totals: dict[tuple[Scope, Novelty], RankingCounts]) -> dict[str, int]:
    """Counts by the names that the metrics of a RunSpec have for them; those that no metric needs are left out."""
    named: dict[str, int] = {}
    for (scope, novelty), counts in totals.items():
        named[ranking_count(scope, novelty, "positions")] = counts.n_positions
        named[ranking_count(scope, novelty, "events")] = counts.n_events
        for index, k in enumerate(KS):
            named[ranking_count(scope, novelty, f"hits_{k}")] = counts.n_hits[index]
            named[ranking_count(scope, novelty, f"found_{k}")] = counts.n_found[index]
    return {name: counted for name, counted in named.items() if name in _NEEDED}


def load_timeline_task(folder: Path, spec: RunSpec, compute: Compute) -> TimelineTask:
    """Load the base and put the adapter on it.

    Raises:
        BaseModelInvalidError: transformers cannot load it, or it has not a row for each token.
        VocabularyInvalidError: its vocabulary is not the one that the run names.
        TargetModulesUnknownError: as ``attach_adapter``.
    """
    task = _task_of(spec)
    vocabulary = _vocabulary_of_base(folder, spec)
    module = attach_adapter(load_base(folder, compute), spec)
    encoder = TimelineEncoder(
        vocabulary,
        max_length=spec.local.max_length,
        min_tokens=task.min_tokens,
        occurrences=task.occurrences,
    )
    return TimelineTask(
        module=module,
        layout=adapter_layout(module, spec),
        vocabulary=vocabulary,
        encoder=encoder,
        time_range_days=task.time_range_days,
    )


def timeline_layout(folder: Path, spec: RunSpec) -> AdapterLayout:
    """The adapter's layout.

    Raises:
        BaseModelInvalidError, VocabularyInvalidError, TargetModulesUnknownError: as ``load_timeline_task``.
    """
    _vocabulary_of_base(folder, spec)
    return layout_without_weights(folder, spec)


def _vocabulary_of_base(folder: Path, spec: RunSpec) -> Vocabulary:
    """The vocabulary beside the base: the one that the run names, as long as the model is wide."""
    vocabulary = read_vocabulary(folder / VOCABULARY_FILE)
    named = _task_of(spec).vocabulary_sha256
    if vocabulary.sha256 != named:
        message = "the base model's vocabulary is not the one that the run names"
        raise VocabularyInvalidError(message, expected=named, found=vocabulary.sha256)
    config = load_config(folder)
    if config.vocab_size != len(vocabulary.tokens):
        message = "the base model has not one row for each token of its vocabulary"
        raise BaseModelInvalidError(message, expected=len(vocabulary.tokens), found=int(config.vocab_size))
    check_positions(config, spec)
    return vocabulary


def _task_of(spec: RunSpec) -> ConceptTimeline:
    assert isinstance(spec.task, ConceptTimeline), "the table says so"
    return spec.task


def _code_loss(logits: torch.Tensor, examples: Sequence[TimelineExample]) -> torch.Tensor:
    labels = torch.tensor([token_id for example in examples for token_id in example.code_ids], device=logits.device)
    return cross_entropy(logits, labels, reduction="sum")


CONCEPT_TIMELINE = TaskHalf(
    formats=frozenset({"timeline-rows", "omop", "fhir"}),
    load=load_timeline_task,
    layout_without_weights=timeline_layout,
)
"""The row of the table."""
