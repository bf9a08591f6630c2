from __future__ import annotations

import hashlib
import json
import math

import pytest
import yaml

from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.spec.faults import RunSpecFaultsError
from fl_protocol.spec.run_spec import (
    RunSpecUnresolvedError,
    bind_adapter,
    parse_run_spec,
    resolve_run_spec,
    run_spec_from_bytes,
)
from fl_protocol.testing.run_specs import SITE_NAMES, pin_of, resolved_run_spec, run_spec_document

REMOVED = object()


def faults_of(document: object) -> dict[str, str]:
    with pytest.raises(RunSpecFaultsError) as caught:
        parse_run_spec(document)  # type: ignore[arg-type]
    faults = caught.value.faults
    assert caught.value.facts["n_faults"] == len(faults)
    assert len({fault.path for fault in faults}) == len(faults), "one fault a path"
    for fault in faults:
        assert f"{fault.path}: {fault.message}" in str(caught.value)
    return {fault.path: fault.message for fault in faults}


def test_spec_of_the_documented_example_is_taken() -> None:
    spec = parse_run_spec(run_spec_document())
    assert spec.name == "medical-qa-round-1"
    assert spec.cohort.names == SITE_NAMES
    assert spec.local.learning_rate == 5e-5
    assert spec.rounds == 5


def test_spec_from_yaml_text_equals_that_of_its_document() -> None:
    text = yaml.safe_dump(run_spec_document())
    assert parse_run_spec(yaml.safe_load(text)) == parse_run_spec(run_spec_document())


def test_defaults_are_filled_in() -> None:
    minimal = {
        "apiVersion": "wardround/v1",
        "kind": "Run",
        "name": "r",
        "purpose": "p",
        "task": {"kind": "instruction-tuning"},
        "base_model": {"name": "m", "sha256": "00" * 32},
        "adapter": {"kind": "lora", "rank": 1, "alpha": 1, "targets": ["q"]},
        "data": {"dataset": "d"},
        "local": {"steps": 1, "batch_size": 1, "max_length": 16, "learning_rate": 1},
        "aggregation": {"algorithm": "fedavg-lora"},
        "cohort": {"sites": ["a", "b", "c"], "quorum": 3},
        "privacy": {"clip_norm": 1},
        "rounds": 1,
    }
    document = parse_run_spec(minimal).to_document()
    assert document == {
        **minimal,
        "task": {"kind": "instruction-tuning", "template": "chat"},
        "adapter": {
            **minimal["adapter"],  # type: ignore[dict-item]
            "dropout": 0.0,
            "layout_sha256": None,
            "initial_sha256": None,
        },
        "data": {"dataset": "d", "min_records": 1, "min_patients": 0},
        "local": {
            **minimal["local"],  # type: ignore[dict-item]
            "rule": "plain",
            "accumulation": 1,
            "optimizer": "adamw",
            "weight_decay": 0.0,
            "schedule": "constant",
            "warmup_steps": 0,
            "seed": 0,
        },
        "aggregation": {"algorithm": "fedavg-lora", "server": {"optimizer": "fedavg"}},
        "cohort": {"sites": ["a", "b", "c"], "quorum": 3, "round_deadline_s": 3600.0, "phase_deadline_s": 600.0},
        "secure_aggregation": {
            "required": True,
            "suite": "SA1",
            "min_cohort": 3,
            "ring_bits": 32,
            "audit_window_s": 86400,
        },
        "privacy": {"clip_norm": 1.0, "weight_cap": 10000, "mechanism": "none"},
        "compression": {"kind": "none"},
        "evaluation": {"every": 1, "metrics": ["loss"], "holdout_fraction": 0.1, "max_records": 64},
        "trainer": {"image_sha256": None},
    }


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("apiVersion", "wardround/v2", "must be 'wardround/v1'"),
        ("kind", "Job", "must be 'Run'"),
        ("name", "", "letters"),
        ("name", "a b", "letters"),
        ("purpose", "  ", "must not be blank"),
        ("purpose", "x" * 501, "500"),
        ("purpose", "a\nb", "one line"),
        ("purpose", 3, "must be text"),
        ("base_model.sha256", "AB" * 32, "SHA-256"),
        ("base_model.sha256", None, "is required"),
        ("adapter.rank", 0, "must be at least 1"),
        ("adapter.rank", 1025, "must be at most 1024"),
        ("adapter.rank", True, "must be a whole number"),
        ("adapter.rank", 8.0, "must be a whole number"),
        ("adapter.rank", "8", "must be a whole number"),
        ("adapter.alpha", 0, "must be greater than 0"),
        ("adapter.dropout", 1.0, "must be less than 1"),
        ("adapter.targets", [], "must not be empty"),
        ("adapter.targets", "q_proj", "must be a list"),
        ("data.min_records", 0, "must be at least 1"),
        ("local.steps", 0, "must be at least 1"),
        ("local.learning_rate", 0, "must be greater than 0"),
        ("local.learning_rate", -1e-5, "must be greater than 0"),
        ("local.learning_rate", math.nan, "must be finite"),
        ("local.learning_rate", math.inf, "must be finite"),
        ("local.learning_rate", 10**400, "must be finite"),
        ("local.learning_rate", True, "must be a number"),
        ("local.learning_rate", "5e-5", "must be a number"),
        ("local.weight_decay", -0.1, "must be at least 0"),
        ("local.seed", -1, "must be at least 0"),
        ("local.seed", 2**53, "must be at most"),
        ("local.schedule", "stairs", "not in this version"),
        ("local.warmup_steps", 51, "must be at most local.steps x rounds"),
        ("cohort.sites", ["a", "b"], "must lie between"),
        ("cohort.quorum", 2, "must be at least 3"),
        ("cohort.quorum", 4, "must lie between"),
        ("cohort.round_deadline_s", 0, "must be greater than 0"),
        ("secure_aggregation.min_cohort", 2, "must be at least 3"),
        ("secure_aggregation.required", False, "not in this version"),
        ("secure_aggregation.required", "yes", "must be true"),
        ("secure_aggregation.ring_bits", 16, "not in this version"),
        ("secure_aggregation.ring_bits", 1, "not in this version"),
        ("secure_aggregation.ring_bits", "32", "must be a whole number"),
        ("secure_aggregation.suite", "SA2", "not in this version"),
        ("privacy.clip_norm", 0, "must be at least"),
        ("privacy.weight_cap", 0, "must be at least 1"),
        ("privacy.mechanism", "gaussian", "not in this version"),
        ("compression.kind", "int8", "not in this version"),
        ("aggregation.algorithm", "fedprox", "not in this version"),
        ("aggregation.server.optimizer", "adam", "not in this version"),
        ("task.kind", "next-token", "not in this version"),
        ("task.template", "plain", "not in this version"),
        ("adapter.kind", "dora", "not in this version"),
        ("local.rule", "proximal", "not in this version"),
        ("local.optimizer", "lion", "not in this version"),
        ("evaluation.every", 6, "must be at most rounds"),
        ("evaluation.holdout_fraction", 1.0, "must be less than 1"),
        ("evaluation.max_records", 10**6 + 1, "must be at most"),
        ("rounds", 0, "must be at least 1"),
        ("rounds", 10_001, "must be at most 10000"),
        ("trainer.image_sha256", "latest", "SHA-256"),
        ("local", 3, "must be a mapping"),
        ("local.momentum", 0.9, "is not a known key"),
        ("extra", 1, "is not a known key"),
        ("aggregation.server.beta", 1, "is not a known key"),
    ],
)
def test_one_wrong_value_is_one_fault_at_its_path(path: str, value: object, message: str) -> None:
    document = run_spec_document({path: value})
    wanted = "cohort.quorum" if path == "cohort.sites" else path
    faults = faults_of(document)
    assert set(faults) == {wanted}
    assert message in faults[wanted]


@pytest.mark.parametrize(
    "path",
    [
        "apiVersion", "kind", "name", "purpose", "task", "task.kind", "base_model", "base_model.name",
        "base_model.sha256", "adapter", "adapter.kind", "adapter.rank", "adapter.alpha", "adapter.targets", "data",
        "data.dataset", "local", "local.steps", "local.batch_size", "local.max_length", "local.learning_rate",
        "aggregation", "aggregation.algorithm", "cohort", "cohort.sites", "cohort.quorum", "privacy",
        "privacy.clip_norm", "rounds",
    ],
)  # fmt: skip
def test_missing_key_is_one_fault_at_its_path(path: str) -> None:
    document = run_spec_document()
    *parents, key = path.split(".")
    section = document
    for parent in parents:
        section = section[parent]  # type: ignore[assignment]
    del section[key]
    assert faults_of(document) == {path: "is required"}


def test_every_fault_of_a_bad_spec_is_listed_with_its_path() -> None:
    document = run_spec_document(
        {
            "task.kind": "poetry",
            "adapter.rank": 0,
            "adapter.targets": ["q_proj", 5, "q_proj"],
            "local.learning_rate": -1,
            "local.steps": True,
            "cohort.sites": ["st-mary", "ST-MARY", "st-mary"],
            "evaluation.metrics": ["loss", "bleu"],
            "privacy.mechanism": "laplace",
            "rounds": "five",
            "surprise": {},
        }
    )
    faults = faults_of(document)
    assert set(faults) == {
        "task.kind",
        "adapter.rank",
        "adapter.targets[1]",
        "adapter.targets[2]",
        "local.learning_rate",
        "local.steps",
        "cohort.sites[1]",
        "cohort.sites[2]",
        "evaluation.metrics[1]",
        "privacy.mechanism",
        "rounds",
        "surprise",
    }
    assert "greater than 0" in faults["local.learning_rate"]
    assert "twice" in faults["cohort.sites[2]"]


@pytest.mark.parametrize("document", [None, [], "run", 3])
def test_document_that_is_no_mapping_is_refused(document: object) -> None:
    assert faults_of(document)["(document)"] == "must be a mapping"


def test_key_that_is_no_text_is_an_unknown_key() -> None:
    document: dict[object, object] = {**run_spec_document(), 5: "x"}
    assert faults_of(document) == {"5": "is not a known key"}


def test_two_sites_with_one_key_are_refused() -> None:
    sites = [
        {"name": "a", "signing_key_sha256": "11" * 32},
        {"name": "b", "signing_key_sha256": "11" * 32},
        {"name": "c", "signing_key_sha256": "not"},
        {"signing_key_sha256": "22" * 32},
        {"name": "d", "key": 1},
        7,
    ]
    faults = faults_of(run_spec_document({"cohort.sites": sites}))
    assert set(faults) == {
        "cohort.sites[1]",
        "cohort.sites[2].signing_key_sha256",
        "cohort.sites[3]",
        "cohort.sites[4].key",
        "cohort.sites[5]",
    }


def test_more_tokens_than_the_ring_can_count_are_refused() -> None:
    changes = {"local.steps": 1_000_000, "local.batch_size": 65_536}
    assert "tokens" in faults_of(run_spec_document(changes))["local"]


def test_evaluation_of_more_tokens_than_the_ring_can_count_is_refused() -> None:
    changes = {"local.max_length": 1 << 20, "evaluation.max_records": 2000}
    assert set(faults_of(run_spec_document(changes))) == {"evaluation.max_records"}


def test_roster_over_the_largest_is_refused() -> None:
    names = [f"site-{number}" for number in range(201)]
    assert "200" in faults_of(run_spec_document({"cohort.sites": names}))["cohort.sites"]


def test_canonical_bytes_are_rfc_8785_of_the_filled_document() -> None:
    spec = parse_run_spec(run_spec_document())
    # For ASCII keys and short numbers, RFC 8785 is sorted compact JSON with whole floats written as integers.
    plain = json.loads(json.dumps(spec.to_document()))
    plain["privacy"]["clip_norm"] = 10
    plain["adapter"]["alpha"] = 16
    plain["adapter"]["dropout"] = 0
    plain["local"]["weight_decay"] = 0
    plain["cohort"] |= {"round_deadline_s": 3600, "phase_deadline_s": 600}
    expected = json.dumps(plain, sort_keys=True, separators=(",", ":")).replace("5e-05", "0.00005")
    assert spec.canonical_bytes() == expected.encode()


def test_digest_is_sha256_of_the_canonical_bytes() -> None:
    spec = resolved_run_spec()
    assert spec.is_resolved
    assert spec.digest() == hashlib.sha256(spec.canonical_bytes()).hexdigest()


def test_digest_of_the_example_is_stable() -> None:
    # A change here changes the identity of every approved run; it needs a new apiVersion.
    # 120 s was filled in when this digest was taken, and stands in the bytes of every run of that time.
    assert resolved_run_spec({"cohort.phase_deadline_s": 120}).digest() == EXAMPLE_DIGEST


def test_enough_is_in_the_bytes_only_where_it_is_set() -> None:
    absent = resolved_run_spec({"cohort.phase_deadline_s": 120})
    assert b"enough" not in absent.canonical_bytes()
    assert resolved_run_spec({"cohort.phase_deadline_s": 120, "cohort.enough": None}).digest() == EXAMPLE_DIGEST
    chosen = resolved_run_spec({"cohort.enough": 3})
    assert chosen.cohort.enough == 3
    assert b'"enough":3,' in chosen.canonical_bytes()
    assert run_spec_from_bytes(chosen.canonical_bytes()) == chosen


@pytest.mark.parametrize("enough", [3, 5, 2, 201, "3", 3.5])
def test_enough_lies_between_quorum_and_the_number_of_sites(enough: object) -> None:
    sites = ["a", "b", "c", "d"]
    faults = faults_of(run_spec_document({"cohort.sites": sites, "cohort.quorum": 4, "cohort.enough": enough}))
    assert list(faults) == ["cohort.enough"]
    parse_run_spec(run_spec_document({"cohort.sites": sites, "cohort.quorum": 3, "cohort.enough": 4}))


def test_digest_does_not_depend_on_key_order_or_number_form() -> None:
    document = run_spec_document({"privacy.clip_norm": 10, "adapter.alpha": 16.0})
    shuffled = dict(reversed(list(document.items())))
    assert parse_run_spec(shuffled).canonical_bytes() == parse_run_spec(run_spec_document()).canonical_bytes()


@pytest.mark.parametrize(
    "changes",
    [{"local.seed": 8}, {"purpose": "Another"}, {"cohort.sites": ["charite", "st-mary", "ucsf"]}, {"rounds": 6}],
)
def test_digest_of_another_spec_is_another(changes: dict[str, object]) -> None:
    assert resolved_run_spec(changes).digest() != resolved_run_spec().digest()


def test_spec_read_from_its_bytes_is_the_same() -> None:
    spec = resolved_run_spec()
    assert run_spec_from_bytes(spec.canonical_bytes()) == spec


@pytest.mark.parametrize("change", ["space", "not-json", "duplicate"])
def test_bytes_that_are_not_canonical_are_refused(change: str) -> None:
    data = resolved_run_spec().canonical_bytes()
    bad = {"space": data + b" ", "not-json": data[:-1], "duplicate": data[:-1] + b',"rounds":5}'}[change]
    with pytest.raises(RunSpecFaultsError):
        run_spec_from_bytes(bad)


def test_digest_of_an_unresolved_spec_says_which_command_adds_what() -> None:
    spec = parse_run_spec(run_spec_document())
    assert not spec.is_resolved
    with pytest.raises(RunSpecUnresolvedError) as caught:
        spec.digest()
    for text in (
        "adapter.layout_sha256",
        "cohort.sites[0].signing_key_sha256",
        "init-adapter",
        "wardround runs create",
    ):
        assert text in caught.value.message


def test_digest_with_pins_but_no_adapter_asks_for_the_adapter_only() -> None:
    spec = resolve_run_spec(parse_run_spec(run_spec_document()), {SiteId(name): pin_of(name) for name in SITE_NAMES})
    with pytest.raises(RunSpecUnresolvedError) as caught:
        spec.digest()
    assert "init-adapter" in caught.value.message
    assert "runs create" not in caught.value.message


def test_resolving_pins_each_site_and_ignores_others() -> None:
    pins = {SiteId(name): pin_of(name) for name in (*SITE_NAMES, "elsewhere")}
    spec = resolve_run_spec(parse_run_spec(run_spec_document()), pins)
    assert spec.cohort.pins == {name: pin_of(name) for name in SITE_NAMES}
    assert resolve_run_spec(spec, pins) == spec


def test_resolving_with_unknown_changed_or_shared_keys_lists_each() -> None:
    sites = ["a", {"name": "b", "signing_key_sha256": "11" * 32}, "c", "d"]
    spec = parse_run_spec(run_spec_document({"cohort.sites": sites}))
    pins = {SiteId("b"): "22" * 32, SiteId("c"): "33" * 32, SiteId("d"): "33" * 32}
    with pytest.raises(RunSpecFaultsError) as caught:
        resolve_run_spec(spec, pins)
    faults = {fault.path: fault.message for fault in caught.value.faults}
    assert set(faults) == {"cohort.sites[0]", "cohort.sites[1]", "cohort.sites[3]"}
    assert "no enrolled site" in faults["cohort.sites[0]"]
    assert "another signing key" in faults["cohort.sites[1]"]


def test_binding_another_adapter_than_the_spec_names_is_refused() -> None:
    spec = resolved_run_spec()
    digests = {"layout_sha256": Sha256Hex("00" * 32), "initial_sha256": spec.adapter.initial_sha256 or Sha256Hex("")}
    with pytest.raises(RunSpecFaultsError) as caught:
        bind_adapter(spec, **digests)
    assert [fault.path for fault in caught.value.faults] == ["adapter.layout_sha256"]


EXAMPLE_DIGEST = "6073113e119a0c5c3594673657a45ab8615d59e8b926f9ab42cd3d4532b6a7e7"
