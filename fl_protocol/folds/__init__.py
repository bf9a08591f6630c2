"""Algorithms: what each site contributes to a sum, and how sums become the next public state. Knows no transport.

Adding an algorithm is one file here with an ``Algorithm``, one row in the table below, and one file for what its
trainer writes. Sites recompute every fold, so a fold is pure numpy and its element-wise rules match bit for bit.
"""

from __future__ import annotations

from fl_protocol.folds.algorithm import Algorithm
from fl_protocol.folds.fedavg_lora import FedAvgLora
from fl_protocol.folds.fedmed import FedMed
from fl_protocol.folds.thresholded_counts import ThresholdedCounts

ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm for algorithm in (FedAvgLora(), FedMed(), ThresholdedCounts())
}
"""Every algorithm of this version, by the name in ``aggregation.algorithm``."""
