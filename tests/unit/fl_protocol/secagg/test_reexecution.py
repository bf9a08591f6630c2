"""A sum that is checked by somebody who trusts nobody: what is accepted, and every lie about it.

The sums expected here are those of the sites' plain vectors, added by numpy; no mask is involved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.codec.chunks import ChunkInvalidError, ChunkTreeBuilder
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.secagg.coordinator_role import (
    ExchangeOpen,
    SurvivingCohort,
    freeze_cohort,
    freeze_sharers,
    freeze_survivors,
    make_sum_evidence,
)
from fl_protocol.secagg.messages import KeyAdvertisement, StatementKind
from fl_protocol.secagg.reading import PeerVerifier
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.secagg.reexecution import (
    MaskedChunk,
    Reexecution,
    SumEvidence,
    SumFalseError,
    chunks_of_ring64,
    decode_sum_evidence,
    read_sum_evidence,
    window_of_chunk,
)
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.testing.entropy import seeded_signer
from fl_protocol.testing.federation import ExchangeOutcome, Federation, LastSent, small_layout
from fl_protocol.testing.strategies import site_names

CHUNK = 16


@dataclasses.dataclass(kw_only=True)
class Checked:
    """One exchange that took place, its plain sum, and what a reader is shown of it."""

    federation: Federation
    opened: ExchangeOpen
    outcome: ExchangeOutcome
    plain_sum: RingVector
    evidence: SumEvidence

    def read(self, evidence: SumEvidence | None = None, **changes: object) -> Reexecution:
        given_facts: dict[str, object] = {
            "h_manifest": self.opened.h_manifest,
            "h_survivors": self.outcome.result.h_survivors,
            "peers": PeerVerifier(approved=self.federation.roster),
            "layout": self.federation.layout,
            "chunk_bytes": CHUNK,
        } | changes
        return read_sum_evidence(evidence or self.evidence, **given_facts)  # type: ignore[arg-type]

    def chunks(self, site: str, numbers: range) -> list[MaskedChunk]:
        tree, parts = ChunkTreeBuilder(), []
        for chunk in self.outcome.conversation.uploads[site].iter_chunks(CHUNK):
            tree.add(chunk)
            parts.append(bytes(chunk))
        return [MaskedChunk(data=parts[number], path=tree.path(number)) for number in numbers]

    def compare(self, chunk: int, published: RingVector) -> None:
        reexecution = self.read()
        window = reexecution.window_of(chunk)
        total = reexecution.begin(window)
        for site in reexecution.sites:
            total.add(site, self.chunks(site, window.chunks))
        total.compare(published)


def checked(*, n: int = 4, n_ring32: int = 21, n_ring64: int = 9, lost: tuple[str, ...] = ()) -> Checked:
    sites = site_names(n)
    federation = Federation(sites, small_layout(n_ring32=n_ring32, n_ring64=n_ring64))
    rng = np.random.default_rng(7)
    vectors = {
        site: RingVector(
            ring32=rng.integers(0, 2**32, n_ring32, dtype=np.uint32).astype("<u4"),
            ring64=rng.integers(0, 2**64, n_ring64, dtype=np.uint64).astype("<u8"),
        )
        for site in sites
    }
    opened = federation.open_exchange()
    outcome = federation.exchange(vectors, last_sent=dict.fromkeys(lost, LastSent.M3), opened=opened)
    counted = [vectors[site] for site in sites if site not in lost]
    plain = RingVector(
        ring32=np.sum([v.ring32 for v in counted], axis=0, dtype=np.uint32).astype("<u4"),
        ring64=np.sum([v.ring64 for v in counted], axis=0, dtype=np.uint64).astype("<u8"),
    )
    surviving = surviving_of(opened, outcome)
    evidence = decode_sum_evidence(make_sum_evidence(surviving, outcome.conversation.m9s))
    return Checked(federation=federation, opened=opened, outcome=outcome, plain_sum=plain, evidence=evidence)


def surviving_of(opened: ExchangeOpen, outcome: ExchangeOutcome) -> SurvivingCohort:
    said = outcome.conversation
    return freeze_survivors(freeze_sharers(freeze_cohort(opened, said.m1s), said.m3s), said.m5s)


def n_chunks(one: Checked) -> int:
    return -(-one.federation.layout.n_bytes // CHUNK)


def refusal(call: Callable[[], object]) -> SecAggRefusedError:
    with pytest.raises(SecAggRefusedError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("lost", [(), ("site-2",)])
@pytest.mark.parametrize(("n_ring32", "n_ring64"), [(21, 9), (20, 9), (5, 0), (64, 1), (3, 4)])
def test_true_sum_is_found_true_in_every_window(n_ring32: int, n_ring64: int, lost: tuple[str, ...]) -> None:
    one = checked(n_ring32=n_ring32, n_ring64=n_ring64, lost=lost)
    for chunk in range(n_chunks(one)):
        one.compare(chunk, one.plain_sum)


@pytest.mark.parametrize("lost", [(), ("site-2",)])
def test_sum_that_is_false_in_one_bit_of_any_word_is_found_in_exactly_one_window(lost: tuple[str, ...]) -> None:
    one = checked(lost=lost)
    layout = one.federation.layout
    for word in range(layout.n_ring32 + layout.n_ring64):
        false = one.plain_sum.copy()
        if word < layout.n_ring32:
            false.ring32[word] ^= 1
        else:
            false.ring64[word - layout.n_ring32] ^= 1
        found = 0
        for chunk in range(n_chunks(one)):
            try:
                one.compare(chunk, false)
            except SumFalseError:
                found += 1
        assert found == 1


@given(n_ring32=st.integers(1, 60), n_ring64=st.integers(0, 40))
def test_every_word_is_in_one_window_whose_chunks_hold_it(n_ring32: int, n_ring64: int) -> None:
    layout = small_layout(n_ring32=n_ring32, n_ring64=n_ring64)
    seen32: list[int] = []
    seen64: list[int] = []
    for chunk in range(-(-layout.n_bytes // CHUNK)):
        window = window_of_chunk(layout, chunk, chunk_bytes=CHUNK)
        held = {byte for number in window.chunks for byte in range(number * CHUNK, (number + 1) * CHUNK)}
        for word in range(window.words32.start, window.words32.stop):
            seen32.append(word)
            assert set(range(4 * word, 4 * word + 4)) <= held
        for word in range(window.words64.start, window.words64.stop):
            seen64.append(word)
            assert set(range(4 * n_ring32 + 8 * word, 4 * n_ring32 + 8 * word + 8)) <= held
    assert seen32 == list(range(n_ring32))
    assert seen64 == list(range(n_ring64))


@given(n_ring32=st.integers(1, 60), n_ring64=st.integers(0, 40))
def test_chunks_of_the_64_bit_section_hold_all_of_it(n_ring32: int, n_ring64: int) -> None:
    layout = small_layout(n_ring32=n_ring32, n_ring64=n_ring64)
    words = [
        word
        for chunk in chunks_of_ring64(layout, chunk_bytes=CHUNK)
        for word in range(*window_of_chunk(layout, chunk, chunk_bytes=CHUNK).words64.indices(n_ring64))
    ]
    assert words == list(range(n_ring64))


def test_window_outside_the_vector_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        window_of_chunk(small_layout(), 10**6)


def test_masked_chunk_that_the_site_did_not_sign_is_refused() -> None:
    one = checked()
    reexecution = one.read()
    window = reexecution.window_of(0)
    chunk = one.chunks("site-1", window.chunks)[0]
    altered = MaskedChunk(data=bytes([chunk.data[0] ^ 1]) + chunk.data[1:], path=chunk.path)
    total = reexecution.begin(window)
    with pytest.raises(ChunkInvalidError):
        total.add("site-1", [altered])


def test_chunk_of_another_place_or_another_site_is_refused() -> None:
    one = checked()
    reexecution = one.read()
    total = reexecution.begin(reexecution.window_of(0))
    with pytest.raises(ChunkInvalidError):
        total.add("site-1", one.chunks("site-1", range(1, 2)))
    with pytest.raises(ChunkInvalidError):
        total.add("site-1", one.chunks("site-2", range(1)))


def test_site_that_is_left_out_or_comes_twice_makes_no_sum() -> None:
    one = checked()
    reexecution = one.read()
    window = reexecution.window_of(0)
    total = reexecution.begin(window)
    for site in reexecution.sites[:-1]:
        total.add(site, one.chunks(site, window.chunks))
    with pytest.raises(SumFalseError):
        total.add(reexecution.sites[0], one.chunks(reexecution.sites[0], window.chunks))
    with pytest.raises(SumFalseError):
        total.compare(one.plain_sum)


def test_site_that_was_lost_is_none_of_the_sum() -> None:
    one = checked(lost=("site-2",))
    reexecution = one.read()
    assert "site-2" not in reexecution.sites
    with pytest.raises(SumFalseError):
        reexecution.begin(reexecution.window_of(0)).add("site-2", [MaskedChunk(data=b"", path=())])


@pytest.mark.parametrize("lost", [(), ("site-2",)])
@pytest.mark.parametrize("index", [0, 1])
def test_secret_that_is_not_the_one_behind_m1_is_refused(index: int, lost: tuple[str, ...]) -> None:
    # The second of the four is the lost one: its rho, the others' b.
    one = checked(lost=lost)
    secrets = list(one.evidence.secrets)
    secrets[index] = (int.from_bytes(secrets[index], "big") ^ 1).to_bytes(32, "big")
    evidence = dataclasses.replace(one.evidence, secrets=tuple(secrets))
    refused = refusal(lambda: one.read(evidence))
    assert (refused.reason, refused.blamed) == (RefusalReason.SECRET_INVALID, f"site-{index + 1}")


@pytest.mark.parametrize("secret", [b"", b"\xff" * 32, bytes(31)])
def test_secret_that_is_no_element_is_refused(secret: bytes) -> None:
    one = checked()
    evidence = dataclasses.replace(one.evidence, secrets=(secret, *one.evidence.secrets[1:]))
    assert refusal(lambda: one.read(evidence)).reason is RefusalReason.SECRET_INVALID


@pytest.mark.parametrize("change", ["fewer", "more"])
def test_secrets_for_others_than_the_sharers_are_refused(change: str) -> None:
    one = checked()
    secrets = one.evidence.secrets
    other = secrets[:-1] if change == "fewer" else (*secrets, secrets[0])
    evidence = dataclasses.replace(one.evidence, secrets=other)
    assert refusal(lambda: one.read(evidence)).reason is RefusalReason.MESSAGE_MALFORMED


def test_survivors_fewer_than_those_that_were_signed_are_refused() -> None:
    one = checked(n=5)
    evidence = dataclasses.replace(one.evidence, m5s=one.evidence.m5s[:-1])
    assert refusal(lambda: one.read(evidence)).reason is RefusalReason.CONTEXT_MISMATCH


def test_evidence_without_survivors_or_sharers_is_refused() -> None:
    one = checked()
    for empty in ("m5s", "m3_headers"):
        evidence = dataclasses.replace(one.evidence, **{empty: ()})
        assert refusal(lambda evidence=evidence: one.read(evidence)).reason is RefusalReason.MESSAGE_MALFORMED


def test_cohort_with_an_invented_site_is_refused() -> None:
    one = checked()
    stranger = seeded_signer("stranger")
    said = KeyAdvertisement.decode(one.evidence.m1s[0].body)
    forged = dataclasses.replace(said, spki_der=stranger.spki_der)
    m1 = sign_body(stranger, StatementKind.M1.value, forged.encode())
    evidence = dataclasses.replace(one.evidence, m1s=(m1, *one.evidence.m1s[1:]))
    assert refusal(lambda: one.read(evidence)).reason is RefusalReason.SITE_NOT_APPROVED


@pytest.mark.parametrize("part", ["m1s", "m3_headers", "m5s"])
def test_statement_that_its_site_did_not_sign_is_refused(part: str) -> None:
    one = checked()
    entries: tuple[SignedBody, ...] = getattr(one.evidence, part)
    other = dataclasses.replace(entries[0], signature=entries[1].signature)
    evidence = dataclasses.replace(one.evidence, **{part: (other, *entries[1:])})
    assert refusal(lambda: one.read(evidence)).reason is RefusalReason.SIGNATURE_INVALID


def test_evidence_of_another_exchange_is_refused() -> None:
    one = checked()
    later = one.federation.open_exchange(exchange_attempt=1)
    assert refusal(lambda: one.read(h_manifest=later.h_manifest)).reason is RefusalReason.CONTEXT_MISMATCH


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x00\x00\x00\x01a" * 4])
def test_bytes_that_are_no_evidence_are_refused(data: bytes) -> None:
    assert refusal(lambda: decode_sum_evidence(data)).reason is RefusalReason.MESSAGE_MALFORMED


def test_evidence_is_read_back_as_it_was_written() -> None:
    one = checked(lost=("site-2",))
    assert decode_sum_evidence(one.evidence.encode()) == one.evidence
