"""Cells whose loss is given, so that a figure can be computed by hand."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.studies.cells import Cell, CellKey, Phase
from fl_protocol.spec.metrics import EvaluationTotals
from wardround.studies.description import Arm


def sums(loss: float, n_units: int = 10) -> EvaluationTotals:
    return EvaluationTotals(loss_sum=loss * n_units, n_units=n_units, n_records=n_units, counts={})


def cell(
    arm: Arm,
    losses: Mapping[str, float],
    *,
    site: str = "",
    seed: int = 7,
    phase: Phase = Phase.TABLE,
    learning_rate: float = 0.5,
    steps: int = 6,
    common_sha256: str = "c",
) -> Cell:
    key = CellKey(phase=phase, arm=arm, site=site, seed=seed, learning_rate=learning_rate, steps=steps)
    return Cell(
        key=key,
        settings_sha256="s",
        common_sha256=common_sha256,
        optimiser_steps=18,
        sites={name: sums(loss) for name, loss in losses.items()},
        update_norms=(1.0, 3.0),
        seconds=2.0,
    )
