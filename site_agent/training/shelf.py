"""The base model in memory: verified, loaded once and kept while jobs of the same run follow each other.

Knows no data and no rounds. An adapter's values are set anew for every job.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fl_protocol.spec.run_spec import RunSpec
from site_agent.training.device import Compute
from site_agent.training.model_files import FileStamp, stamps_of, verify_model_folder
from site_agent.training.task_half import LoadedTask
from site_agent.training.tasks import TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelKey:
    """What two jobs must agree on to share a loaded model."""

    folder: str
    stamps: tuple[FileStamp, ...]
    sha256: str
    learned: str
    compute: Compute


class ModelShelf:
    """Holds the model of the last job. Invariant: at most one is in memory."""

    def __init__(self) -> None:
        """Nothing is loaded yet."""
        self._key: ModelKey | None = None
        self._task: LoadedTask | None = None

    def take(self, folder: Path, spec: RunSpec, *, sha256: str, compute: Compute) -> LoadedTask:
        """The run's base model with the run's adapter on it; loaded and verified unless it is here already.

        Raises:
            BaseModelError: the folder is missing, unusable, or holds another model than ``sha256``.
            TrainerError: the run's task or adapter cannot be put on it.
        """
        key = ModelKey(
            folder=str(folder), stamps=stamps_of(folder), sha256=sha256, learned=_learned(spec), compute=compute
        )
        if self._task is None or key != self._key:
            self.clear()
            verify_model_folder(folder, sha256)
            self._task = TASKS[spec.task.kind].load(folder, spec, compute)
            self._key = key
        return self._task

    def clear(self) -> None:
        """Let go of the model."""
        self._key = self._task = None


def _learned(spec: RunSpec) -> str:
    """What of a run a loaded task depends on."""
    task, adapter = spec.task.to_document(), spec.adapter.to_document()
    base, local = spec.base_model, (spec.local.max_length, spec.local.gradient_checkpointing)
    return f"{base.name} {base.quantization} {sorted(task.items())} {sorted(adapter.items())} {local}"
