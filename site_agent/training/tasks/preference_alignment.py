"""Preference alignment: of two answers to a prompt the chosen one is to become likelier (DPO).

The loss and its source stand in ``preference_loss``. A pair is one unit of the loss. A record of which either answer
has no room is left out whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fl_protocol.spec.metrics import MARGIN_STEPS
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.tasks.preference_alignment import PreferenceAlignment
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.training.causal_model import AdaptedModel, load_adapted
from site_agent.training.device import Compute
from site_agent.training.errors import LossNotFiniteError
from site_agent.training.formats.text_files import PREFERENCE_FORMATS
from site_agent.training.preference_loss import PreferenceLoss, PreferencePair
from site_agent.training.task_half import EncodedRecord, EvaluatedBatch, Fit, LossSum, TaskHalf
from site_agent.training.tasks.text_tasks import TurnEncoder, templated_layout
from site_agent.training.text_records import PreferenceRecord


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreferenceTask:
    """A causal model with its adapter, and the loss of pairs on it. See ``LoadedTask``."""

    model: AdaptedModel
    turns: TurnEncoder
    loss: PreferenceLoss

    @property
    def module(self) -> torch.nn.Module:
        """The causal model."""
        return self.model.module

    @property
    def layout(self) -> AdapterLayout:
        """The adapter's."""
        return self.model.layout

    def encode(self, record: PreferenceRecord) -> EncodedRecord:
        """Tokenise one record; an answer that is too long loses its end, a prompt is never cut.

        Where the ends of both are lost and the rest is the same, nothing is left to prefer: there is no room for it.

        Raises:
            ChatTemplateError: the template cannot render it.
        """
        chosen_fit, chosen = self.turns.encode(record.prompt, record.chosen)
        rejected_fit, rejected = self.turns.encode(record.prompt, record.rejected)
        if chosen is None or rejected is None or chosen.completion_ids == rejected.completion_ids:
            return EncodedRecord(fit=Fit.NO_ROOM, example=None)
        fit = Fit.CUT if Fit.CUT in (chosen_fit, rejected_fit) else Fit.WHOLE
        return EncodedRecord(fit=fit, example=PreferencePair(chosen=chosen, rejected=rejected))

    def train_loss(self, examples: Sequence[PreferencePair]) -> LossSum:
        """Summed over pairs."""
        return LossSum(loss=self.loss(examples).losses.sum(), n_units=len(examples))

    def evaluate(self, examples: Sequence[PreferencePair]) -> EvaluatedBatch:
        """The loss, how many pairs are preferred as they should be, and the margins, in whole steps.

        Raises:
            LossNotFiniteError: a margin is NaN or infinite, of which there is no number of steps.
        """
        answer = self.loss(examples)
        if not bool(answer.margins.isfinite().all()):
            raise LossNotFiniteError("the evaluation loss is not finite")
        steps = [round(margin * MARGIN_STEPS) for margin in answer.margins.tolist()]
        counts = {
            "preferred": int((answer.margins > 0).sum()),
            "margin_above": sum(step for step in steps if step > 0),
            "margin_below": -sum(step for step in steps if step < 0),
        }
        return EvaluatedBatch(loss_sum=float(answer.losses.sum()), n_units=len(examples), counts=counts)


def load_preference_task(folder: Path, spec: RunSpec, compute: Compute) -> PreferenceTask:
    """Load the base and put the adapter on it.

    Raises:
        BaseModelInvalidError, TargetModulesUnknownError: as ``load_adapted``.
        ChatTemplateError: the base lacks what the template needs.
    """
    task = _task_of(spec)
    model = load_adapted(folder, spec, compute)
    return PreferenceTask(
        model=model,
        turns=TurnEncoder(model.tokenizer, task.template, max_length=spec.local.max_length),
        loss=PreferenceLoss(model.completion_loss, beta=task.beta, without_adapter=model.module.disable_adapter),
    )


def preference_layout(folder: Path, spec: RunSpec) -> AdapterLayout:
    """The adapter's layout. See ``templated_layout``."""
    return templated_layout(folder, spec, _task_of(spec).template)


def _task_of(spec: RunSpec) -> PreferenceAlignment:
    assert isinstance(spec.task, PreferenceAlignment), "the table says so"
    return spec.task


PREFERENCE_ALIGNMENT = TaskHalf(
    formats=frozenset(PREFERENCE_FORMATS),
    load=load_preference_task,
    layout_without_weights=preference_layout,
    is_shared=True,
)
"""The row of the table."""
