from __future__ import annotations

import dataclasses

import pytest

from fl_protocol.errors import ProtocolError
from fl_protocol.spec.context import ContextInvalidError, ExchangeContext
from fl_protocol.spec.round_spec import NO_DIGEST, RoundKind, RoundManifest, RoundManifestInvalidError

MANIFEST = RoundManifest(
    run_id="run-" + "a" * 26,
    round_index=3,
    round_attempt=1,
    kind=RoundKind.EVALUATE,
    suite="SA1",
    run_spec_sha256="11" * 32,
    public_state_sha256="22" * 32,
    public_state_version=3,
    previous_result_sha256=NO_DIGEST,
    payload_layout_sha256="33" * 32,
    min_cohort=3,
    audit_window_s=86_400,
    opened_at="2026-01-02T03:04:05.000006+00:00",
    audit_size=2**40,
    audit_head="44" * 32,
)


def test_manifest_decodes_to_itself() -> None:
    assert RoundManifest.decode(MANIFEST.encode()) == MANIFEST


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(RoundManifest)])
def test_manifest_every_field_changes_the_bytes(field: str) -> None:
    other = {
        "run_id": "run-" + "b" * 26,
        "kind": RoundKind.TRAIN,
        "suite": "SA9",
        "opened_at": "2026-01-02T03:04:06Z",
    }
    value = getattr(MANIFEST, field)
    changed = other.get(field, value + 1 if isinstance(value, int) else "55" * 32)
    assert dataclasses.replace(MANIFEST, **{field: changed}).encode() != MANIFEST.encode()


@pytest.mark.parametrize(
    "fields",
    [
        {"opened_at": "yesterday"},
        {"opened_at": "2026-01-02T03:04:05"},
        {"opened_at": "2026-01-02T03:04:05+01:00"},
        {"audit_size": -1},
        {"round_index": 1 << 32},
        {"min_cohort": -1},
        {"run_id": "run-1"},
        {"audit_head": "44"},
    ],
)
def test_manifest_value_that_is_not_admitted_is_refused(fields: dict) -> None:
    with pytest.raises(ProtocolError):
        dataclasses.replace(MANIFEST, **fields)


def test_manifest_bytes_cut_or_of_another_kind_are_refused() -> None:
    data = MANIFEST.encode()
    with pytest.raises(ProtocolError):
        RoundManifest.decode(data[:-1])
    with pytest.raises(RoundManifestInvalidError):
        RoundManifest.decode(data.replace(b"evaluate", b"evaluatE"))


def test_context_of_an_exchange_names_its_round_and_decodes_to_itself() -> None:
    context = MANIFEST.exchange(2, 5)
    assert context == ExchangeContext(
        run_id=MANIFEST.run_id, round_index=3, round_attempt=1, exchange_index=2, exchange_attempt=5
    )
    assert ExchangeContext.decode(context.encode()) == context


def test_context_counter_beyond_four_bytes_is_refused() -> None:
    with pytest.raises(ContextInvalidError):
        MANIFEST.exchange(1 << 32, 0)
