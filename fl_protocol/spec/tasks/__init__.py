"""Task kinds as a RunSpec says them. A new kind is one file here and one row in the table.

Its trainer's half is one file in ``site_agent/training/tasks`` and one row in the table there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fl_protocol.spec.faults import Reader
from fl_protocol.spec.tasks.instruction_tuning import read_instruction_tuning
from fl_protocol.spec.tasks.task_spec import TaskKind, TaskSpec

__all__ = ["TASK_READERS", "TaskKind", "TaskSpec"]

TASK_READERS: Mapping[TaskKind, Callable[[Reader], TaskSpec]] = {
    TaskKind.INSTRUCTION_TUNING: read_instruction_tuning,
}
"""Reads the rest of a section ``task`` whose ``kind`` is known."""
