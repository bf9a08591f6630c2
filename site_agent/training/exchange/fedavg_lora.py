"""The site half of ``fedavg-lora``: the update and the sums that it puts into the round's one exchange.

These are raw figures of one site. Clipping, weighting and encoding are the agent's, in ``fl_protocol``; nothing here
leaves the site but through the secure sum. The names and dtypes are those of the algorithm's ``weigh``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.folds.site_comparison import INITIAL_LOSS, INITIAL_UNITS
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.training.errors import LossNotFiniteError
from site_agent.training.local.steps import TrainingSums

RawSegments = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSums:
    """Sums over the held-out records, of the adapter that was received.

    Attributes:
        loss_sum: nats, over ``n_tokens`` units, such as completion tokens.
        counts: what the run's metrics need besides, by name.
    """

    loss_sum: float
    n_tokens: int
    n_records: int
    counts: Mapping[str, int] = field(default_factory=dict)


NOT_EVALUATED = EvaluationSums(loss_sum=0.0, n_tokens=0, n_records=0)
"""What a site adds in a round that ``evaluation.every`` leaves out."""


def evaluation_segments(
    sums: EvaluationSums, counts: Collection[str] = (), *, initial: EvaluationSums | None = None
) -> RawSegments:
    """What an evaluation adds to the sum: eval_loss_sum float64, eval_tokens and eval_records int64, shape (1,).

    Args:
        sums: of this site.
        counts: names of the counts that the run's metrics need; each is one more ``eval_<name>``, int64, 0 where
            nothing of the kind was counted. Others are left out.
        initial: of adapter v0 over the same records, where the run compares sites. The agent makes flags of it.
    """
    segments: RawSegments = {
        "eval_loss_sum": np.array([sums.loss_sum], dtype=np.float64),
        "eval_tokens": np.array([sums.n_tokens], dtype=np.int64),
        "eval_records": np.array([sums.n_records], dtype=np.int64),
        **{f"eval_{name}": np.array([sums.counts.get(name, 0)], dtype=np.int64) for name in counts},
    }
    if initial is not None:
        segments[INITIAL_LOSS] = np.array([initial.loss_sum], dtype=np.float64)
        segments[INITIAL_UNITS] = np.array([initial.n_tokens], dtype=np.int64)
    return segments


def training_segments(
    layout: AdapterLayout,
    *,
    local_adapter: Mapping[str, NDArray[Any]],
    global_adapter: Mapping[str, NDArray[Any]],
    trained: TrainingSums,
    evaluated: EvaluationSums,
    counts: Collection[str] = (),
    initial: EvaluationSums | None = None,
) -> RawSegments:
    """What a trained round adds to the sum.

    Returns:
        adapter_update = local - global, float32, shape (d,), finite; train_loss_sum float64 and train_tokens int64,
        shape (1,); and the evaluation's segments.

    Raises:
        LossNotFiniteError: an element of the update is not finite.
        AdapterTensorError: an adapter is not of this layout.
    """
    update = layout.flatten(local_adapter) - layout.flatten(global_adapter)
    if not np.isfinite(update).all():
        raise LossNotFiniteError("the trained adapter is not finite")
    return {
        "adapter_update": update,
        "train_loss_sum": np.array([trained.loss_sum], dtype=np.float64),
        "train_tokens": np.array([trained.n_tokens], dtype=np.int64),
        **evaluation_segments(evaluated, counts, initial=initial),
    }
