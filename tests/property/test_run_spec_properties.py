from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.spec.faults import Fault, RunSpecFaultsError
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec, run_spec_from_bytes
from fl_protocol.testing.run_specs import run_spec_document

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def paths_of(section: dict[str, object], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in section.items():
        found.append(prefix + key)
        if isinstance(value, dict):
            found += paths_of(value, f"{prefix}{key}.")
    return found


PATHS = st.sampled_from(paths_of(run_spec_document()))


def outcome_of(document: object) -> RunSpec | tuple[Fault, ...]:
    try:
        return parse_run_spec(document)  # type: ignore[arg-type]
    except RunSpecFaultsError as error:
        return error.faults


UNIT = st.floats(0, 1, exclude_max=True)
SERVERS = st.one_of(
    st.fixed_dictionaries({"optimizer": st.just("fedavg")}),
    st.fixed_dictionaries({"optimizer": st.just("fedavgm")}, optional={"beta1": UNIT}),
    st.fixed_dictionaries(
        {"optimizer": st.sampled_from(["fedyogi", "fedadam"])},
        optional={
            "learning_rate": st.floats(0, 1e3, exclude_min=True),
            "tau": st.floats(1e-15, 1e3),
            "beta1": UNIT,
            "beta2": UNIT,
        },
    ),
)
ATTENTIONS = st.fixed_dictionaries(
    {},
    optional={
        "distance": st.sampled_from(["l2", "js"]),
        "temperature": st.floats(1e-9, 1e9),
        "max_distance": st.floats(0, 3),
        "step": st.floats(0, 2, exclude_min=True),
        "gate": st.sampled_from(["stalled", "always"]),
        "stall": st.floats(-64, 64),
        "threshold": st.floats(0, 1e6),
    },
)
AGGREGATIONS = st.one_of(
    st.fixed_dictionaries({"algorithm": st.just("fedavg-lora"), "server": SERVERS}),
    st.fixed_dictionaries({"algorithm": st.just("fedmed"), "server": SERVERS, "attention": ATTENTIONS}),
)

CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "aggregation": AGGREGATIONS,
        "local.rule": st.sampled_from(["plain", "fedprox"]),
        "local.optimizer": st.sampled_from(["adamw", "sgd"]),
        "adapter.rank": st.integers(1, 1024),
        "adapter.alpha": st.floats(0, 1e6, exclude_min=True),
        "adapter.dropout": st.floats(0, 1, exclude_max=True),
        "local.learning_rate": st.floats(0, exclude_min=True, allow_infinity=False),
        "local.weight_decay": st.floats(0, allow_infinity=False),
        "local.seed": st.integers(0, 2**53 - 1),
        "local.schedule": st.sampled_from(["constant", "linear", "cosine"]),
        "privacy.clip_norm": st.floats(1e-6, 1e6),
        "privacy.weight_cap": st.integers(1, 10**9),
        "purpose": st.text(min_size=1, max_size=500).filter(lambda text: text.isprintable() and text.strip()),
        "cohort.round_deadline_s": st.floats(0, 86400, exclude_min=True),
        "rounds": st.integers(1, 10_000),
    },
)


@given(changes=CHANGES)
def test_any_valid_spec_survives_its_canonical_bytes(changes: dict[str, object]) -> None:
    spec = parse_run_spec(run_spec_document(changes))
    data = spec.canonical_bytes()
    assert run_spec_from_bytes(data) == spec
    assert parse_run_spec(json.loads(json.dumps(spec.to_document()))).canonical_bytes() == data


@settings(deadline=None, max_examples=300)
@given(path=PATHS, value=JSON)
def test_any_value_anywhere_gives_a_spec_or_faults_at_that_place(path: str, value: object) -> None:
    document = run_spec_document()
    *parents, key = path.split(".")
    section = document
    for parent in parents:
        section = section[parent]  # type: ignore[assignment]
    section[key] = value
    match outcome_of(document):
        case RunSpec() as spec:
            assert run_spec_from_bytes(spec.canonical_bytes()) == spec
        case faults:
            # A cross-check may speak about the other side of what changed.
            related = {"cohort.quorum", "local", "local.warmup_steps", "evaluation.every", "evaluation.max_records"}
            assert faults
            assert all(fault.path.startswith(path) or fault.path in related for fault in faults)


@given(document=JSON)
def test_any_json_is_refused_with_faults(document: object) -> None:
    faults = outcome_of(document)
    assert isinstance(faults, tuple)
    assert faults
