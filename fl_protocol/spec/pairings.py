"""Which task, adapter and algorithm of a RunSpec go only together."""

from __future__ import annotations

from collections.abc import Iterator

from fl_protocol.spec.adapters import AdapterKind, AdapterSpec
from fl_protocol.spec.faults import Fault
from fl_protocol.spec.run_spec_parts import AggregationSpec, AlgorithmName, LocalRule
from fl_protocol.spec.server_spec import ServerOptimizerName
from fl_protocol.spec.tasks import TaskKind, TaskSpec
from fl_protocol.spec.tasks.concept_vocabulary import ConceptVocabulary


def pairing_faults(
    task: TaskSpec, adapter: AdapterSpec, aggregation: AggregationSpec, rule: LocalRule, *, rounds: int, n_sites: int
) -> Iterator[tuple[Fault, tuple[str, ...]]]:
    """Each fault, and the keys that it is about."""
    is_vocabulary = {
        "task.kind": task.kind is TaskKind.CONCEPT_VOCABULARY,
        "adapter.kind": adapter.kind is AdapterKind.PUBLISHED_CODES,
        "aggregation.algorithm": aggregation.algorithm is AlgorithmName.THRESHOLDED_COUNTS,
    }
    if len(set(is_vocabulary.values())) > 1:
        message = "concept-vocabulary, published-codes and thresholded-counts go only together"
        yield Fault(path="task.kind", message=message), tuple(is_vocabulary)
    elif isinstance(task, ConceptVocabulary):
        if rounds != 1:
            yield Fault(path="rounds", message="must be 1: a vocabulary is counted once"), ("rounds", "task.kind")
        # A rule that nothing follows would be approved for nothing.
        if aggregation.server.optimizer is not ServerOptimizerName.FEDAVG:
            message, key = "a run that counts moves no adapter: leave it out", "aggregation.server.optimizer"
            yield Fault(path=key, message=message), (key, "task.kind")
        if rule is not LocalRule.PLAIN:
            message = "a run that counts trains nothing: leave it out"
            yield Fault(path="local.rule", message=message), ("local.rule", "task.kind")
        if task.min_sites > n_sites:
            message = f"must be at most the number of sites ({n_sites})"
            yield Fault(path="task.min_sites", message=message), ("task.min_sites", "cohort.sites")
    if adapter.kind is AdapterKind.FULL and task.kind is not TaskKind.CONCEPT_TIMELINE:
        message = "full is for the task concept-timeline: elsewhere a row of a token may show one site's records"
        yield Fault(path="adapter.kind", message=message), ("adapter.kind", "task.kind")
