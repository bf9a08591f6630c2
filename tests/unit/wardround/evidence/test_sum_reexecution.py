"""An auditor makes a sum again: the true one is found true, and each lie is told apart.

The expected sum is that of the sites' plain vectors, added by numpy.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest

from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.ids import SiteId
from fl_protocol.secagg.coordinator_role import ExchangeOpen
from fl_protocol.secagg.messages import ExchangeResult, StatementKind
from fl_protocol.secagg.sum_record import SumRecord, layout_json_of
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.spec.round_spec import RoundManifest
from fl_protocol.spec.run_spec import RunSpec, bind_adapter, parse_run_spec, resolve_run_spec
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.testing.entropy import seeded_signer
from fl_protocol.testing.federation import ExchangeOutcome, Federation, LastSent, small_layout
from fl_protocol.testing.run_specs import run_spec_document
from wardround.errors import EvidenceFaultError
from wardround.evidence.sum_reexecution import SumReexecuted, reexecute_sum

SITES = tuple(SiteId(f"site-{number}") for number in range(1, 5))
# One chunk and a half, so that trees have paths and pieces cross the boundary.
N_RING32, N_RING64 = 400_001, 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """What an auditor is shown of one sum."""

    federation: Federation
    spec: RunSpec
    record: SumRecord
    uploads: dict[SiteId, bytes]
    published: bytes
    plain_sum: RingVector

    def check(self, **changes: object) -> SumReexecuted:
        record: SumRecord = changes.get("record", self.record)  # type: ignore[assignment]
        published: bytes = changes.get("published", self.published)  # type: ignore[assignment]
        uploads: dict[SiteId, bytes] = changes.get("uploads", self.uploads)  # type: ignore[assignment]
        return reexecute_sum(
            record.encode(),
            pieces(published),
            lambda site: pieces(uploads[site]),
            spec=changes.get("spec", self.spec),  # type: ignore[arg-type]
            coordinator_spki=changes.get("spki", self.federation.coordinator.spki_der),  # type: ignore[arg-type]
        )


def pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 77_777):
        yield data[start : start + 77_777]


@pytest.fixture(scope="module", params=[(), ("site-2",)], ids=["all", "one lost"])
def shown(request: pytest.FixtureRequest) -> Shown:
    federation = Federation(SITES, small_layout(n_ring32=N_RING32, n_ring64=N_RING64), params=SecAggParams())
    changes: dict[str, object] = {"cohort.sites": list(SITES), "cohort.quorum": 3}
    spec = resolve_run_spec(parse_run_spec(run_spec_document(changes)), federation.roster)
    spec = bind_adapter(spec, layout_sha256="aa" * 32, initial_sha256="bb" * 32)  # type: ignore[arg-type]
    manifest = dataclasses.replace(RoundManifest.decode(federation.manifest().body), run_spec_sha256=spec.digest())
    signed = sign_body(federation.coordinator, StatementKind.M0.value, manifest.encode())
    opened = ExchangeOpen(
        manifest=signed,
        exchange_index=0,
        exchange_attempt=0,
        layout=federation.layout,
        params=federation.params,
        roster=federation.roster,
    )
    rng = np.random.default_rng(11)
    vectors = {
        site: RingVector(
            ring32=rng.integers(0, 2**32, N_RING32, dtype=np.uint32).astype("<u4"),
            ring64=rng.integers(0, 2**64, N_RING64, dtype=np.uint64).astype("<u8"),
        )
        for site in SITES
    }
    outcome = federation.exchange(vectors, last_sent=dict.fromkeys(request.param, LastSent.M3), opened=opened)
    counted = [vectors[site] for site in SITES if site not in request.param]
    plain = RingVector(
        ring32=np.sum([v.ring32 for v in counted], axis=0, dtype=np.uint32).astype("<u4"),
        ring64=np.sum([v.ring64 for v in counted], axis=0, dtype=np.uint64).astype("<u8"),
    )
    return Shown(
        federation=federation,
        spec=spec,
        record=record_of(outcome, opened),
        uploads={site: vector.to_bytes() for site, vector in outcome.conversation.uploads.items()},
        published=plain.to_bytes(),
        plain_sum=plain,
    )


def record_of(outcome: ExchangeOutcome, opened: ExchangeOpen) -> SumRecord:
    said = outcome.conversation
    return SumRecord(
        manifest=opened.manifest,
        exchange_index=0,
        exchange_attempt=0,
        layout_json=layout_json_of(opened.layout),
        m1s=said.m1s,
        m3s=said.m3s,
        m5s=said.m5s,
        m7s=said.m7s,
        m9s=said.m9s,
        m10=SignedBody.decode(said.m10),
    )


def fault(call: Callable[[], object]) -> str:
    with pytest.raises(EvidenceFaultError) as caught:
        call()
    return str(caught.value)


def test_true_sum_is_found_true(shown: Shown) -> None:
    found = shown.check()
    assert set(found.sites) | set(found.lost_sites) == set(SITES)
    assert found.sum_sha256 == hashlib.sha256(shown.plain_sum.to_bytes()).hexdigest()
    assert SumRecord.decode(shown.record.encode()) == shown.record


@pytest.mark.parametrize("place", [0, 4 * N_RING32 - 1, 4 * N_RING32 + 8 * N_RING64 - 1])
def test_sum_that_is_false_anywhere_is_found(shown: Shown, place: int) -> None:
    data = bytearray(shown.published)
    data[place] ^= 1
    assert "NOT what the sites uploaded" in fault(lambda: shown.check(published=bytes(data)))


def test_false_sum_under_a_fresh_m10_is_found(shown: Shown) -> None:
    """The coordinator signs what it likes; its signature is not what the sum is compared with."""
    data = bytearray(shown.published)
    data[0] ^= 1
    said = ExchangeResult.decode(shown.record.m10.body)
    lie = dataclasses.replace(said, result_sha256=hashlib.sha256(data).digest())
    m10 = sign_body(shown.federation.coordinator, StatementKind.M10.value, lie.encode())
    record = dataclasses.replace(shown.record, m10=m10)
    assert "NOT what the sites uploaded" in fault(lambda: shown.check(record=record, published=bytes(data)))


def test_upload_that_the_site_did_not_sign_is_found_and_the_site_is_named(shown: Shown) -> None:
    data = bytearray(shown.uploads[SITES[0]])
    data[-1] ^= 1
    told = fault(lambda: shown.check(uploads={**shown.uploads, SITES[0]: bytes(data)}))
    assert "not the one that it signed" in told
    assert "site-1" in told


@pytest.mark.parametrize("cut", [slice(0, -4), slice(0, 0)])
def test_upload_that_is_cut_is_a_typed_fault(shown: Shown, cut: slice) -> None:
    data = shown.uploads[SITES[0]][cut]
    assert "cannot be made again" in fault(lambda: shown.check(uploads={**shown.uploads, SITES[0]: data}))


def test_another_run_spec_is_found(shown: Shown) -> None:
    other = dataclasses.replace(shown.spec, rounds=shown.spec.rounds + 1)
    assert "another RunSpec" in fault(lambda: shown.check(spec=other))


def test_another_layout_is_found(shown: Shown) -> None:
    record = dataclasses.replace(shown.record, layout_json=layout_json_of(small_layout()))
    assert "another payload layout" in fault(lambda: shown.check(record=record))


def test_another_coordinator_is_found(shown: Shown) -> None:
    told = fault(lambda: shown.check(spki=seeded_signer("another").spki_der))
    assert "signature-invalid" in told


@pytest.mark.parametrize("kind", ["m1s", "m3s", "m5s", "m7s", "m9s"])
def test_message_that_is_left_out_or_altered_is_found(shown: Shown, kind: str) -> None:
    messages = dict(getattr(shown.record, kind))
    last = max(messages)
    altered = {**messages, last: messages[last][:-1] + bytes([messages[last][-1] ^ 1])}
    left_out = {site: message for site, message in messages.items() if site != last}
    for changed in (altered, left_out):
        record = dataclasses.replace(shown.record, **{kind: changed})
        assert "cannot be made again" in fault(lambda record=record: shown.check(record=record))


@pytest.mark.parametrize("data", [b"", b"\x00" * 8, b"\xff" * 64])
def test_bytes_that_are_no_record_are_a_typed_fault(shown: Shown, data: bytes) -> None:
    nothing: Iterable[bytes] = ()
    told = fault(lambda: reexecute_sum(data, nothing, lambda _: nothing, spec=shown.spec, coordinator_spki=b""))
    assert "cannot be made again" in told
