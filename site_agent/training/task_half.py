"""The seam of a task kind: what the recipe asks of a task, and what a task need not know of rounds and files.

A record is what a data format reads; an example is what a loss is computed on. Between both stands the task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.training.device import Compute


class TaskExample(Protocol):
    """One record, ready for the model."""

    @property
    def n_tokens(self) -> int:
        """Its length, by which examples are sorted before an evaluation; 1 where there is no length."""
        ...

    @property
    def n_units(self) -> int:
        """How many terms its loss has: completion tokens, or 1 for a whole that has one loss. At least 1."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSum:
    """A loss summed over units, in nats: a float32 or float64 scalar with its graph; and how many units."""

    loss: torch.Tensor
    n_units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedBatch:
    """What an evaluation of a few held-out examples adds to this site's sums.

    Attributes:
        loss_sum: nats, over ``n_units`` units.
        counts: by the names that the metrics of ``fl_protocol/spec/metrics.py`` need; each at most ``n_units``, and
            those that the run does not ask for are left out of what is sent.
    """

    loss_sum: float
    n_units: int
    counts: Mapping[str, int] = field(default_factory=dict)


class Fit(StrEnum):
    """How a record fits into what the run admits of one, such as ``max_length`` tokens."""

    WHOLE = "whole"
    CUT = "cut"
    NO_ROOM = "no-room"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRecord:
    """A record's example and how it fits. Invariant: there is no example exactly when there is no room for one."""

    fit: Fit
    example: TaskExample | None


class LoadedTask(Protocol):
    """A base model with a run's adapter on it; kept while the jobs of a run follow each other.

    Invariant: of ``module`` only the adapter's parameters require a gradient, and the jobs change no other.
    """

    @property
    def module(self) -> torch.nn.Module:
        """What is trained."""
        ...

    @property
    def layout(self) -> AdapterLayout:
        """The adapter's."""
        ...

    # A format reads records of its own class, and a task takes those of its formats: the table of tasks pairs them.
    def encode(self, record: Any) -> EncodedRecord:
        """A record of one of the task's formats as an example.

        Raises:
            TrainerError: the record, or the base, cannot be used.
        """
        ...

    def train_loss(self, examples: Sequence[Any]) -> LossSum:
        """The summed loss of at least one example, with its graph."""
        ...

    def evaluate(self, examples: Sequence[Any]) -> EvaluatedBatch:
        """The sums over at least one example; called without gradients."""
        ...


@runtime_checkable
class PreparesRecords(Protocol):
    """A loaded task that looks at a job's records before they are encoded, or keeps what is costly to compute."""

    def prepare(self, training: Sequence[Any], *, private_folder: Path) -> None:
        """Get ready for a job.

        Args:
            training: the records that may be trained on.
            private_folder: the run's own folder at this site, kept between its jobs and deleted with the run. Nothing
                in it leaves the site.

        Raises:
            TrainerError: the records cannot be trained on.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskHalf:
    """The site half of a task kind.

    Attributes:
        formats: names of the data formats whose records it takes.
        load: puts the run's adapter on the base model of a folder, on a device. Raises TrainerError.
        layout_without_weights: the layout that ``load`` would give, from the folder's configuration alone. Raises
            TrainerError, also where the base lacks what every site's training would need.
    """

    formats: frozenset[str]
    load: Callable[[Path, RunSpec, Compute], LoadedTask]
    layout_without_weights: Callable[[Path, RunSpec], AdapterLayout]
    is_shared: bool = False
