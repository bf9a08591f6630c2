"""What of a RunSpec for images goes only together: task, adapter and metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fl_protocol.spec.adapters import AdapterKind, AdapterSpec
from fl_protocol.spec.faults import Fault
from fl_protocol.spec.metrics import Metric
from fl_protocol.spec.run_spec_parts import EvaluationSpec
from fl_protocol.spec.tasks import TaskKind, TaskSpec
from fl_protocol.spec.tasks.image_text_adapter import ImageTextAdapter
from fl_protocol.spec.tasks.image_text_contrastive import ImageTextContrastive

_ADAPTERS: Mapping[TaskKind, frozenset[AdapterKind]] = {
    TaskKind.IMAGE_TEXT_ADAPTER: frozenset({AdapterKind.ATTENTION, AdapterKind.JOINT_PROJECTION}),
    TaskKind.IMAGE_TEXT_CONTRASTIVE: frozenset({AdapterKind.JOINT_PROJECTION}),
}
"""FedCLIP's attention stands behind images alone: a site with texts only would train nothing with it."""

_BEHIND_TOWERS = frozenset({AdapterKind.ATTENTION, AdapterKind.JOINT_PROJECTION})
_RANKS: Mapping[Metric, int] = {Metric.RETRIEVAL_P1: 1, Metric.RETRIEVAL_P3: 3, Metric.RETRIEVAL_P5: 5}


def image_task_faults(
    task: TaskSpec, adapter: AdapterSpec, evaluation: EvaluationSpec
) -> Iterator[tuple[Fault, tuple[str, ...]]]:
    """Each fault, and the keys that it is about."""
    known = _ADAPTERS.get(task.kind)
    if known is not None and adapter.kind not in known:
        message = f"the task {task.kind.value} takes one of: {', '.join(sorted(known))}"
        yield Fault(path="adapter.kind", message=message), ("adapter.kind", "task.kind")
    if known is None and adapter.kind in _BEHIND_TOWERS:
        message = f"{adapter.kind.value} is for tasks on images and texts"
        yield Fault(path="adapter.kind", message=message), ("adapter.kind", "task.kind")
    if isinstance(task, ImageTextAdapter | ImageTextContrastive):
        n_prompts = sum(len(one.prompts) for one in task.classes)
        for metric in evaluation.metrics:
            if _RANKS.get(metric, 0) > n_prompts:
                message = f"{metric.value} needs as many prompts as candidates; there are {n_prompts}"
                yield Fault(path="evaluation.metrics", message=message), ("evaluation.metrics", "task.classes")
