"""Where a job is, on the disk, so that a trainer that dies costs seconds and not the round.

One file in the job folder, replaced whole; the newest one only. It is an ordinary safetensors file: no pickle is
written or read. What it belongs to is part of it, as a digest over everything that the numbers depend on; a checkpoint
of anything else, or one that is damaged, is thrown away, and the job starts from its beginning. Either way the payload
is the same to the last bit (on a CPU), so that one round attempt has one vector, however often its trainer died.

Safety: a checkpoint holds the plain adapter of this site. It never leaves the job folder, and is deleted as soon as
the job is closed, at the latest with the folder.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ProtocolError
from fl_protocol.tensors.safetensors_io import (
    dtype_name,
    iter_safetensors,
    little_endian_bytes,
    metadata_from_bytes,
    tensors_from_bytes,
)
from site_agent.jobs.documents import write_file_parts
from site_agent.jobs.job_dir import CHECKPOINT_FILE, CHECKPOINT_FOLDER
from site_agent.training.errors import CheckpointUnusableError
from site_agent.training.exchange.fedavg_lora import EvaluationSums
from site_agent.training.local.steps import StepsState, TrainingSums

_log = logging.getLogger(__name__)

_FORMAT = "2"
"""Raised with every change of what the tensors mean; a checkpoint of another format is of another program."""

_PRIVATE_FOLDER = 0o700
_METRIC = "evaluated/metric/"
_LEAST_SHARE = 20
"""A checkpoint is written only after this many times its own cost: at most a twentieth of the time goes into them."""

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """How far a job is.

    Invariant: ``trained`` is None until ``is_evaluated``.

    Attributes:
        evaluated: the sums so far; all of them where ``is_evaluated``.
        trained: training after its newest step; None before the first.
    """

    evaluated: EvaluationSums
    is_evaluated: bool
    trained: StepsState | None = None


class CheckpointStore:
    """The checkpoint of one job. Invariant: a disk that is full or gone never fails a job; it only costs the next one.

    The first checkpoint is written when two intervals of work are at stake, so that a small round writes none.
    """

    def __init__(
        self, job_dir: Path, *, belongs_to: str, every_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Keep where to write, and how often.

        Args:
            job_dir: the job's folder.
            belongs_to: the digest that ``identity_of_job`` gives.
            every_s: the shortest time between two checkpoints; 0 writes one at every chance, whatever it costs.
            monotonic: tells seconds.
        """
        self._folder = job_dir / CHECKPOINT_FOLDER
        self._belongs_to = belongs_to
        self._every_s = every_s
        self._monotonic = monotonic
        self._due_at = monotonic() + 2 * every_s

    def newest(self) -> Checkpoint | None:
        """The checkpoint that an earlier trainer left for this very job; anything else in its place is deleted."""
        try:
            tensors = self._read()
        except FileNotFoundError:
            self.discard()
            return None
        except CheckpointUnusableError as error:
            _log.warning("checkpoint discarded: %s; the job starts from its beginning", error.message)
            self.discard()
            return None
        self._clear_all_but_the_newest()
        return _checkpoint_from_tensors(tensors)

    def offer(self, make: Callable[[], Checkpoint]) -> None:
        """Write a checkpoint if one is due; ``make`` is only called then."""
        started = self._monotonic()
        if started < self._due_at:
            return
        self._write(_tensors_of(make()))
        ended = self._monotonic()
        if self._every_s > 0:
            self._due_at = ended + max(self._every_s, _LEAST_SHARE * (ended - started))

    def discard(self) -> None:
        """Delete whatever is there."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, tensors: Tensors) -> None:
        metadata = {"format": _FORMAT, "belongs_to": self._belongs_to, "content_sha256": _digest_of(tensors)}
        try:
            self._folder.mkdir(mode=_PRIVATE_FOLDER, exist_ok=True)
            write_file_parts(self._folder / CHECKPOINT_FILE, iter_safetensors(tensors, metadata))
        except OSError as error:
            # The work goes on without a net: a full disk is told, and the older checkpoint is still there.
            _log.warning("no checkpoint written: %s; the job goes on", error.strerror or type(error).__name__)

    def _read(self) -> Tensors:
        try:
            data = (self._folder / CHECKPOINT_FILE).read_bytes()
            metadata, tensors = metadata_from_bytes(data), tensors_from_bytes(data)
        except FileNotFoundError:
            raise
        except (OSError, ProtocolError) as error:
            raise CheckpointUnusableError("it is damaged", reason=type(error).__name__) from error
        if metadata.get("content_sha256") != _digest_of(tensors):
            raise CheckpointUnusableError("it is damaged", reason="digest")
        if (metadata.get("format"), metadata.get("belongs_to")) != (_FORMAT, self._belongs_to):
            raise CheckpointUnusableError("it is of another job, of other data or of another program")
        return tensors

    def _clear_all_but_the_newest(self) -> None:
        """Delete what a trainer that died while writing left beside it."""
        for path in self._folder.iterdir():
            if path.name != CHECKPOINT_FILE:
                path.unlink(missing_ok=True)


def _tensors_of(checkpoint: Checkpoint) -> Tensors:
    evaluated, trained = checkpoint.evaluated, checkpoint.trained
    counts = [evaluated.n_tokens, evaluated.n_records, int(checkpoint.is_evaluated)]
    tensors: Tensors = {
        "evaluated/loss_sum": np.array([evaluated.loss_sum], dtype=np.float64),
        "evaluated/counts": np.array(counts, dtype=np.int64),
        **{f"{_METRIC}{name}": np.array([value], dtype=np.int64) for name, value in evaluated.counts.items()},
    }
    if trained is not None:
        tensors |= {
            "trained/loss_sum": np.array([trained.sums.loss_sum], dtype=np.float64),
            "trained/counts": np.array([trained.sums.n_tokens, trained.step], dtype=np.int64),
            **{f"state/{name}": tensor for name, tensor in trained.tensors.items()},
        }
    return tensors


def _checkpoint_from_tensors(tensors: Tensors) -> Checkpoint:
    n_tokens, n_records, is_evaluated = (int(count) for count in tensors["evaluated/counts"])
    loss_sum = float(tensors["evaluated/loss_sum"][0])
    metric_counts = {
        name.removeprefix(_METRIC): int(tensor[0]) for name, tensor in tensors.items() if name.startswith(_METRIC)
    }
    trained: StepsState | None = None
    if "trained/counts" in tensors:
        trained_tokens, step = (int(count) for count in tensors["trained/counts"])
        trained = StepsState(
            step=step,
            sums=TrainingSums(loss_sum=float(tensors["trained/loss_sum"][0]), n_tokens=trained_tokens),
            tensors={
                name.removeprefix("state/"): tensor for name, tensor in tensors.items() if name.startswith("state/")
            },
        )
    return Checkpoint(
        evaluated=EvaluationSums(loss_sum=loss_sum, n_tokens=n_tokens, n_records=n_records, counts=metric_counts),
        is_evaluated=bool(is_evaluated),
        trained=trained,
    )


def _digest_of(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name}\0{dtype_name(array.dtype)}\0{array.shape}\0".encode())
        digest.update(little_endian_bytes(array))
    return digest.hexdigest()
