"""RunSpec: the declarative description of a run that every site approves, and the digest that identifies it.

Approving a run means reading one page, so a RunSpec holds no code and no free-form options: unknown keys are refused,
and what a later version brings is refused as "not in this version". Where a dataset or a model lies is not its
business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import rfc8785

from fl_protocol.errors import ProtocolError
from fl_protocol.ids import IdentifierInvalidError, Sha256Hex, SiteId, sha256_hex_from_text
from fl_protocol.spec import run_spec_reader as reader
from fl_protocol.spec.adapters import AdapterKind, AdapterSpec
from fl_protocol.spec.faults import Fault, Reader, RunSpecFaultsError
from fl_protocol.spec.image_task_faults import image_task_faults
from fl_protocol.spec.metrics import METRICS
from fl_protocol.spec.pairings import pairing_faults
from fl_protocol.spec.run_spec_parts import (
    AggregationSpec,
    AlgorithmName,
    BaseModelSpec,
    CohortSite,
    CohortSpec,
    CompressionSpec,
    DataSpec,
    EvaluationSpec,
    LocalOptimizer,
    LocalRule,
    LocalSpec,
    PrivacySpec,
    Schedule,
    SecureAggregationSpec,
    TrainerSpec,
)
from fl_protocol.spec.tasks import TaskSpec

__all__ = [
    "Fault",
    "RunSpec",
    "RunSpecFaultsError",
    "RunSpecUnresolvedError",
    "bind_adapter",
    "parse_run_spec",
    "resolve_run_spec",
    "run_spec_from_bytes",
]

API_VERSION = "wardround/v1"
KIND = "Run"
MAX_ROUNDS = 10_000
MAX_TOKENS_PER_ROUND = 1 << 30
"""At one site; it bounds the sums of tokens and losses, and with them the 64-bit part of a payload."""


class RunSpecUnresolvedError(ProtocolError):
    """A RunSpec has no digest yet: something that it must name is still open."""

    code = "run-spec-unresolved"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """A whole run.

    Invariant: only ``parse_run_spec`` makes one, so every bound and cross-check of the reader holds.
    """

    name: str
    purpose: str
    task: TaskSpec
    base_model: BaseModelSpec
    adapter: AdapterSpec
    data: DataSpec
    local: LocalSpec
    aggregation: AggregationSpec
    cohort: CohortSpec
    secure_aggregation: SecureAggregationSpec
    privacy: PrivacySpec
    compression: CompressionSpec
    evaluation: EvaluationSpec
    trainer: TrainerSpec
    rounds: int

    @property
    def is_resolved(self) -> bool:
        """Whether the spec names every site's key and the adapter's digests."""
        return not self._open_keys()

    def to_document(self) -> dict[str, object]:
        """The spec as JSON values, with every default filled in."""
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": self.name,
            "purpose": self.purpose,
            "task": self.task.to_document(),
            "base_model": self.base_model.to_document(),
            "adapter": self.adapter.to_document(),
            "data": self.data.to_document(),
            "local": self.local.to_document(),
            "aggregation": self.aggregation.to_document(),
            "cohort": self.cohort.to_document(),
            "secure_aggregation": self.secure_aggregation.to_document(),
            "privacy": self.privacy.to_document(),
            "compression": {"kind": self.compression.kind.value},
            "evaluation": self.evaluation.to_document(),
            "trainer": {"image_sha256": self.trainer.image_sha256},
            "rounds": self.rounds,
        }

    def canonical_bytes(self) -> bytes:
        """RFC 8785 of ``to_document``. Stored and sent as these bytes; never rendered again from a database row."""
        return rfc8785.dumps(self.to_document())  # type: ignore[arg-type]  # JSON values, typed as object

    def digest(self) -> Sha256Hex:
        """SHA-256 of the canonical bytes: what the sites approve.

        Raises:
            RunSpecUnresolvedError: a key's fingerprint or an adapter digest is still missing.
        """
        missing = self._open_keys()
        if missing:
            message = f"the run specification has no digest yet; missing: {', '.join(missing)}. "
            if any(path.startswith("adapter.") for path in missing):
                message += "'python -m site_agent.training init-adapter' makes the adapter's digests. "
            if any(path.startswith("cohort.") for path in missing):
                message += "'wardround runs create' adds the sites' keys from their enrolment. "
            raise RunSpecUnresolvedError(message.strip())
        return Sha256Hex(hashlib.sha256(self.canonical_bytes()).hexdigest())

    def _open_keys(self) -> list[str]:
        """The paths that must be filled in before there is a digest."""
        missing = [
            f"adapter.{key}"
            for key, value in (
                ("layout_sha256", self.adapter.layout_sha256),
                ("initial_sha256", self.adapter.initial_sha256),
            )
            if value is None
        ]
        for index, site in enumerate(self.cohort.sites):
            if site.signing_key_sha256 is None:
                missing.append(f"cohort.sites[{index}].signing_key_sha256")
        return missing


def parse_run_spec(document: Mapping[str, object]) -> RunSpec:
    """Read a RunSpec from what a YAML or JSON parser returned; defaults are filled in.

    Raises:
        RunSpecFaultsError: with every fault, each with its path.
    """
    faults: list[Fault] = []
    top = Reader(document, path="", faults=faults)
    top.constant("apiVersion", API_VERSION)
    top.constant("kind", KIND)
    local = reader.read_local(top)
    cohort = reader.read_cohort(top)
    rounds = top.integer("rounds", low=1, high=MAX_ROUNDS)
    spec = RunSpec(
        name=top.label("name"),
        purpose=top.text("purpose", longest=500),
        task=reader.read_task(top),
        base_model=reader.read_base_model(top),
        adapter=reader.read_adapter(top),
        data=reader.read_data(top),
        local=local,
        aggregation=reader.read_aggregation(top),
        cohort=cohort,
        secure_aggregation=reader.read_secure_aggregation(top),
        privacy=reader.read_privacy(top),
        compression=reader.read_compression(top),
        evaluation=reader.read_evaluation(top),
        trainer=reader.read_trainer(top),
        rounds=rounds,
    )
    top.finish()
    wrong = tuple(fault.path for fault in faults)
    for fault, involved in _cross_faults(spec):
        # A cross-check on a key that is itself wrong would only repeat, or invent, a fault.
        if not any(path.startswith(key) or key.startswith(f"{path}.") for key in involved for path in wrong):
            faults.append(fault)
    if faults:
        raise RunSpecFaultsError(faults)
    return spec


def run_spec_from_bytes(data: bytes) -> RunSpec:
    """Read a RunSpec from its canonical bytes, as they were stored or received.

    Raises:
        RunSpecFaultsError: the bytes are no RunSpec, or not the canonical bytes of one.
    """
    try:
        document = json.loads(data)
    except ValueError as error:
        raise RunSpecFaultsError([Fault(path="(document)", message="is not JSON")]) from error
    spec = parse_run_spec(document)
    if spec.canonical_bytes() != data:
        raise RunSpecFaultsError([Fault(path="(document)", message="is not in canonical form (RFC 8785)")])
    return spec


def _cross_faults(spec: RunSpec) -> Iterator[tuple[Fault, tuple[str, ...]]]:
    """What is wrong between keys that are right by themselves, and which keys those are."""
    n_sites, min_cohort = len(spec.cohort.sites), spec.secure_aggregation.min_cohort
    if not min_cohort <= spec.cohort.quorum <= n_sites:
        message = f"must lie between secure_aggregation.min_cohort ({min_cohort}) and the number of sites ({n_sites})"
        keys = ("cohort.quorum", "cohort.sites", "secure_aggregation.min_cohort")
        yield Fault(path="cohort.quorum", message=message), keys
    enough = spec.cohort.enough
    if enough is not None and not spec.cohort.quorum <= enough <= n_sites:
        message = f"must lie between cohort.quorum ({spec.cohort.quorum}) and the number of sites ({n_sites})"
        yield Fault(path="cohort.enough", message=message), ("cohort.enough", "cohort.quorum", "cohort.sites")
    if spec.local.max_tokens > MAX_TOKENS_PER_ROUND:
        message = f"steps x batch_size x accumulation x max_length must be at most {MAX_TOKENS_PER_ROUND} tokens"
        factors = ("local.steps", "local.batch_size", "local.accumulation", "local.max_length")
        yield Fault(path="local", message=message), factors
    if spec.evaluation.max_records * spec.local.max_length > MAX_TOKENS_PER_ROUND:
        message = f"max_records x local.max_length must be at most {MAX_TOKENS_PER_ROUND} tokens"
        yield Fault(path="evaluation.max_records", message=message), ("evaluation.max_records", "local.max_length")
    if spec.local.warmup_steps > spec.local.steps * spec.rounds:
        message = "must be at most local.steps x rounds, all the steps of the run"
        yield Fault(path="local.warmup_steps", message=message), ("local.warmup_steps", "local.steps", "rounds")
    yield from _local_faults(spec)
    for index, metric in enumerate(spec.evaluation.metrics):
        tasks = METRICS[metric].tasks
        if tasks is not None and spec.task.kind not in tasks:
            message = f"{metric.value!r} is not measured of the task {spec.task.kind.value!r}"
            yield Fault(path=f"evaluation.metrics[{index}]", message=message), ("evaluation.metrics", "task.kind")
    if spec.local.gradient_checkpointing and spec.adapter.kind is AdapterKind.PREFIX:
        message = "does not go with a prefix, whose keys and values a layer that is computed twice would lose"
        yield Fault(path="local.gradient_checkpointing", message=message), ("local", "adapter.kind")
    n_sites, rule = len(spec.cohort.sites), spec.local.rule
    yield from pairing_faults(spec.task, spec.adapter, spec.aggregation, rule, rounds=spec.rounds, n_sites=n_sites)
    yield from image_task_faults(spec.task, spec.adapter, spec.evaluation)
    if spec.evaluation.every > spec.rounds:
        yield Fault(path="evaluation.every", message="must be at most rounds"), ("evaluation.every", "rounds")


def _local_faults(spec: RunSpec) -> Iterator[tuple[Fault, tuple[str, ...]]]:
    """What is wrong between a local rule, its optimiser and its schedule."""
    local = spec.local
    if local.rule is LocalRule.SCAFFOLD and local.optimizer is not LocalOptimizer.SGD:
        message = "must be sgd for the rule scaffold: its control variates are sums of gradients, not of Adam's steps"
        yield Fault(path="local.optimizer", message=message), ("local.optimizer", "local.rule")
    if local.rule is LocalRule.SCAFFOLD and spec.aggregation.algorithm is not AlgorithmName.FEDAVG_LORA:
        message = (
            "scaffold is a rule of the algorithm fedavg-lora: its control variates move by the weights of the update"
        )
        yield Fault(path="local.rule", message=message), ("local.rule", "aggregation.algorithm")
    if local.schedule is Schedule.COSINE_BY_ROUND:
        if local.min_learning_rate > local.learning_rate:
            message = "must be at most local.learning_rate"
            keys = ("local.min_learning_rate", "local.learning_rate")
            yield Fault(path="local.min_learning_rate", message=message), keys
        if local.warmup_steps:
            message = "must be 0 with the schedule cosine-by-round, which has one rate a round"
            yield Fault(path="local.warmup_steps", message=message), ("local.warmup_steps", "local.schedule")


def resolve_run_spec(spec: RunSpec, pins: Mapping[SiteId, str]) -> RunSpec:
    """The spec with the signing-key fingerprint of each of its sites (decision 7).

    Args:
        spec: as written by its author, with names only or with fingerprints.
        pins: the fingerprints of enrolled sites; others than the spec's may be among them.

    Raises:
        RunSpecFaultsError: a site is not enrolled, has another key than the spec says, or shares its key.
    """
    faults: list[Fault] = []
    sites: list[CohortSite] = []
    for index, site in enumerate(spec.cohort.sites):
        path = f"cohort.sites[{index}]"
        try:
            pin = sha256_hex_from_text(pins.get(site.name, ""))
        except IdentifierInvalidError:
            faults.append(Fault(path=path, message=f"no enrolled site is called {site.name!r}"))
            continue
        if site.signing_key_sha256 not in (None, pin):
            faults.append(Fault(path=path, message=f"site {site.name!r} is enrolled with another signing key"))
        if any(other.signing_key_sha256 == pin for other in sites):
            faults.append(Fault(path=path, message="two sites have the same signing key"))
        sites.append(CohortSite(name=site.name, signing_key_sha256=pin))
    if faults:
        raise RunSpecFaultsError(faults)
    return replace(spec, cohort=replace(spec.cohort, sites=tuple(sites)))


def bind_adapter(spec: RunSpec, *, layout_sha256: Sha256Hex, initial_sha256: Sha256Hex) -> RunSpec:
    """The spec with the digests that ``init-adapter`` printed (decision 9).

    Raises:
        RunSpecFaultsError: the spec already names others.
    """
    faults = [
        Fault(path=f"adapter.{key}", message="the spec names another digest than the initial adapter has")
        for key, named, made in (
            ("layout_sha256", spec.adapter.layout_sha256, layout_sha256),
            ("initial_sha256", spec.adapter.initial_sha256, initial_sha256),
        )
        if named not in (None, made)
    ]
    if faults:
        raise RunSpecFaultsError(faults)
    return replace(spec, adapter=replace(spec.adapter, layout_sha256=layout_sha256, initial_sha256=initial_sha256))
