"""RunSpecs for tests: one valid document that a test changes where it looks."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping

from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.spec.run_spec import RunSpec, bind_adapter, parse_run_spec, resolve_run_spec

SITE_NAMES = ("st-mary", "charite", "ucsf")

_DOCUMENT: dict[str, object] = {
    "apiVersion": "wardround/v1",
    "kind": "Run",
    "name": "medical-qa-round-1",
    "purpose": "Answer patient questions about rare diseases",
    "task": {"kind": "instruction-tuning", "template": "chat"},
    "base_model": {"name": "smollm2-135m-instruct", "sha256": "ab" * 32},
    "adapter": {"kind": "lora", "rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]},
    "data": {"dataset": "medical-qa", "min_records": 100, "min_patients": 0},
    "local": {
        "rule": "plain",
        "steps": 10,
        "batch_size": 4,
        "max_length": 512,
        "learning_rate": 5.0e-5,
        "schedule": "cosine",
        "seed": 7,
    },
    "aggregation": {"algorithm": "fedavg-lora", "server": {"optimizer": "fedavg"}},
    "cohort": {"sites": list(SITE_NAMES), "quorum": 3, "round_deadline_s": 3600},
    "secure_aggregation": {
        "required": True,
        "suite": "SA1",
        "min_cohort": 3,
        "ring_bits": 32,
        "audit_window_s": 86400,
    },
    "privacy": {"clip_norm": 10.0, "weight_cap": 10000, "mechanism": "none"},
    "compression": {"kind": "none"},
    "evaluation": {"every": 1, "metrics": ["loss"]},
    "rounds": 5,
}


def run_spec_document(changes: Mapping[str, object] | None = None) -> dict[str, object]:
    """A valid document with some keys set, each by its path: ``{"local.steps": 3}``."""
    document = copy.deepcopy(_DOCUMENT)
    for path, value in (changes or {}).items():
        *parents, key = path.split(".")
        section = document
        for parent in parents:
            inner = section.setdefault(parent, {})
            assert isinstance(inner, dict)
            section = inner
        section[key] = value
    return document


def pin_of(name: str) -> Sha256Hex:
    """A fingerprint that stands for the signing key of a site."""
    return Sha256Hex(hashlib.sha256(name.encode()).hexdigest())


def resolved_run_spec(changes: Mapping[str, object] | None = None) -> RunSpec:
    """The valid spec, changed, with pins and adapter digests."""
    spec = parse_run_spec(run_spec_document(changes))
    resolved = resolve_run_spec(spec, {SiteId(name): pin_of(name) for name in spec.cohort.names})
    return bind_adapter(resolved, layout_sha256=pin_of("layout"), initial_sha256=pin_of("initial"))
