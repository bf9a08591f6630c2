"""A causal model that learns completions: all that tasks on text share, whatever their records are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.training.causal_model import AdaptedModel
from site_agent.training.collate import Example
from site_agent.training.task_half import EncodedRecord, EvaluatedBatch, LossSum
from site_agent.training.tasks.drawing import Encoder


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompletionTask:
    """A causal model with its adapter, and the encoder of its records. See ``LoadedTask``."""

    model: AdaptedModel
    encoder: Encoder

    @property
    def module(self) -> torch.nn.Module:
        """The causal model."""
        return self.model.module

    @property
    def layout(self) -> AdapterLayout:
        """The adapter's."""
        return self.model.layout

    def encode(self, record: object) -> EncodedRecord:
        """As the encoder does it. Raises TrainerError."""
        return self.encoder.encode(record)

    def train_loss(self, examples: Sequence[Example]) -> LossSum:
        """Summed over completion tokens."""
        return self.model.completion_loss(examples)

    def evaluate(self, examples: Sequence[Example]) -> EvaluatedBatch:
        """The loss alone: perplexity follows from it."""
        answer = self.model.completion_loss(examples)
        return EvaluatedBatch(loss_sum=float(answer.loss), n_units=answer.n_units)
