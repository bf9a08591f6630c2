"""The sections of a RunSpec as values: what each key means and how it is rendered. Reads nothing and checks nothing.

The sections ``task`` and ``adapter`` have a class a kind: ``tasks`` and ``adapters``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

import rfc8785

from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.spec.attention_spec import AttentionSpec
from fl_protocol.spec.metrics import Metric
from fl_protocol.spec.server_spec import ServerSpec


class LocalRule(StrEnum):
    """How a site trains."""

    PLAIN = "plain"
    FEDPROX = "fedprox"
    SCAFFOLD = "scaffold"


class Quantization(StrEnum):
    """How many bits a frozen weight of the base model has while a site trains."""

    NONE = "none"
    """As many as the site's device computes with."""
    INT8 = "int8"
    INT4 = "int4"


class LocalOptimizer(StrEnum):
    """Which optimiser a site trains with."""

    ADAMW = "adamw"
    SGD = "sgd"


class Schedule(StrEnum):
    """How the learning rate goes over all steps of all rounds."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_BY_ROUND = "cosine-by-round"


class AlgorithmName(StrEnum):
    """How sums become the next adapter."""

    FEDAVG_LORA = "fedavg-lora"
    FEDMED = "fedmed"
    THRESHOLDED_COUNTS = "thresholded-counts"


class Suite(StrEnum):
    """The protocol of the secure sum."""

    SA1 = "SA1"


class Mechanism(StrEnum):
    """The noise that is added."""

    NONE = "none"


class CompressionKind(StrEnum):
    """How an update is made smaller."""

    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModelSpec:
    """``base_model``: a name for people, the model digest for machines.

    ``quantization`` is not in the document of a spec that does not set it: its digest is what it was before.
    """

    name: str
    sha256: Sha256Hex
    quantization: Quantization = Quantization.NONE

    def to_document(self) -> dict[str, object]:
        """The section as JSON values."""
        document: dict[str, object] = {"name": self.name, "sha256": self.sha256}
        if self.quantization is Quantization.NONE:
            return document
        return {**document, "quantization": self.quantization.value}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """``data``: which registered dataset, and how much of it there must be."""

    dataset: str
    min_records: int
    min_patients: int

    def to_document(self) -> dict[str, object]:
        """The section as JSON values."""
        return {"dataset": self.dataset, "min_records": self.min_records, "min_patients": self.min_patients}


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSpec:
    """``local``: training at a site, within one round; ``warmup_steps`` counts over all rounds.

    Attributes:
        mu: of the rule fedprox: how strongly it pulls to the global adapter. In the document of that rule only.
        min_learning_rate: of the schedule cosine-by-round: what it falls to. In the document of that schedule only.
        gradient_checkpointing: in the document of a spec that sets it only, so that older digests are what they were.
    """

    rule: LocalRule
    steps: int
    batch_size: int
    accumulation: int
    max_length: int
    optimizer: LocalOptimizer
    learning_rate: float
    weight_decay: float
    schedule: Schedule
    warmup_steps: int
    seed: int
    mu: float = 0.01
    min_learning_rate: float = 1e-6
    gradient_checkpointing: bool = False

    @property
    def summary(self) -> str:
        """The rule, the optimiser and the rates in a few words, for a page that people approve."""
        rule = self.rule.value
        match self.rule:
            case LocalRule.PLAIN:
                pass
            case LocalRule.FEDPROX:
                rule += f" (pulled to the shared adapter, mu {self.mu:g})"
            case LocalRule.SCAFFOLD:
                rule += " (this site keeps a control variate between rounds; its change is in the sum)"
            case _:
                assert_never(self.rule)
        lowest = f" to {self.min_learning_rate:g}" if self.schedule is Schedule.COSINE_BY_ROUND else ""
        return f"{rule}, {self.optimizer.value} at {self.learning_rate:g}{lowest}, {self.schedule.value}"

    @property
    def max_tokens(self) -> int:
        """The largest number of tokens that a site can train on in one round."""
        return self.steps * self.batch_size * self.accumulation * self.max_length

    def to_document(self) -> dict[str, object]:
        """The section as JSON values."""
        document: dict[str, object] = {
            "rule": self.rule.value,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "accumulation": self.accumulation,
            "max_length": self.max_length,
            "optimizer": self.optimizer.value,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "schedule": self.schedule.value,
            "warmup_steps": self.warmup_steps,
            "seed": self.seed,
        }
        if self.rule is LocalRule.FEDPROX:
            document["mu"] = self.mu
        if self.schedule is Schedule.COSINE_BY_ROUND:
            document["min_learning_rate"] = self.min_learning_rate
        return {**document, "gradient_checkpointing": True} if self.gradient_checkpointing else document


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationSpec:
    """``aggregation``; ``attention`` is of the algorithm fedmed, and in the document of that one only."""

    algorithm: AlgorithmName
    server: ServerSpec
    attention: AttentionSpec | None = None

    @property
    def summary(self) -> str:
        """The algorithm and the server's rule in a few words, for a page that people approve."""
        algorithm = self.algorithm.value
        if self.attention is not None:
            algorithm += f": {self.attention.summary}"
        return f"{algorithm}; the server applies the mean by {self.server.summary}"

    def to_document(self) -> dict[str, object]:
        """The section as JSON values."""
        document: dict[str, object] = {"algorithm": self.algorithm.value, "server": self.server.to_document()}
        return document if self.attention is None else {**document, "attention": self.attention.to_document()}


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortSite:
    """One site of the roster; ``signing_key_sha256`` is its pin, absent until the spec is resolved."""

    name: SiteId
    signing_key_sha256: Sha256Hex | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortSpec:
    """``cohort``: the roster, and how many of it a round needs and how long it waits.

    ``enough`` is not in the document of a spec that does not set it: its digest is what it was before there was one.
    """

    sites: tuple[CohortSite, ...]
    quorum: int
    round_deadline_s: float
    phase_deadline_s: float
    enough: int | None = None

    @property
    def names(self) -> tuple[SiteId, ...]:
        """The roster's names, in the spec's order."""
        return tuple(site.name for site in self.sites)

    @property
    def pins(self) -> dict[SiteId, Sha256Hex]:
        """Name to signing-key fingerprint, of the sites that have one."""
        return {site.name: site.signing_key_sha256 for site in self.sites if site.signing_key_sha256 is not None}

    def digest(self) -> Sha256Hex:
        """A name for who is in the run: SHA-256 of the canonical JSON of name to signing-key fingerprint."""
        return Sha256Hex(
            hashlib.sha256(rfc8785.dumps({str(site): str(pin) for site, pin in self.pins.items()})).hexdigest()
        )

    def to_document(self) -> dict[str, object]:
        """The section as JSON values: a site as its name until it is pinned, then as name and pin."""
        sites: list[object] = [
            site.name
            if site.signing_key_sha256 is None
            else {"name": site.name, "signing_key_sha256": site.signing_key_sha256}
            for site in self.sites
        ]
        document: dict[str, object] = {
            "sites": sites,
            "quorum": self.quorum,
            "round_deadline_s": self.round_deadline_s,
            "phase_deadline_s": self.phase_deadline_s,
        }
        return document if self.enough is None else {**document, "enough": self.enough}


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureAggregationSpec:
    """``secure_aggregation``; it is always required."""

    suite: Suite
    min_cohort: int
    ring_bits: int
    audit_window_s: int

    def to_document(self) -> dict[str, object]:
        """The section as JSON values."""
        return {
            "required": True,
            "suite": self.suite.value,
            "min_cohort": self.min_cohort,
            "ring_bits": self.ring_bits,
            "audit_window_s": self.audit_window_s,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySpec:
    """``privacy``: what bounds one site's influence."""

    clip_norm: float
    weight_cap: int
    mechanism: Mechanism

    def to_document(self) -> dict[str, object]:
        """The section as JSON values."""
        return {"clip_norm": self.clip_norm, "weight_cap": self.weight_cap, "mechanism": self.mechanism.value}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionSpec:
    """``compression``."""

    kind: CompressionKind


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSpec:
    """``evaluation``: every how many rounds, on which held-out part of each site's records."""

    every: int
    metrics: tuple[Metric, ...]
    holdout_fraction: float
    max_records: int

    def to_document(self) -> dict[str, object]:
        """The section as JSON values."""
        return {
            "every": self.every,
            "metrics": [metric.value for metric in self.metrics],
            "holdout_fraction": self.holdout_fraction,
            "max_records": self.max_records,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSpec:
    """``trainer``: the image that must train, or None for any."""

    image_sha256: Sha256Hex | None
