"""What is learned: one file a task kind, and one row of the table a kind.

What a run says of its task is in ``fl_protocol/spec/tasks``; which records there are, in
``site_agent/training/formats``.
"""

from __future__ import annotations

from collections.abc import Mapping

from fl_protocol.spec.tasks import TaskKind
from site_agent.training.task_half import TaskHalf
from site_agent.training.tasks.instruction_tuning import INSTRUCTION_TUNING

TASKS: Mapping[TaskKind, TaskHalf] = {
    TaskKind.INSTRUCTION_TUNING: INSTRUCTION_TUNING,
}
"""Every task kind that this trainer can do."""
