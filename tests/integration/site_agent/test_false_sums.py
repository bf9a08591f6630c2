"""A coordinator that publishes another sum than the sites uploaded: every agent refuses it, and says which lie it was.

Whole agents with real journals, roles and folds; the coordinator lies after it learned everything there is to learn.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from sqlalchemy import select
from sqlalchemy.orm import Session

from fl_protocol.audit.events import event_from_bytes
from fl_protocol.clock import SystemClock
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.ids import RunId, SiteId
from fl_protocol.packing import pack, u32
from fl_protocol.secagg.messages import ExchangeResult
from fl_protocol.secagg.reexecution import MaskedChunk, SumEvidence
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.testing.entropy import seeded_signer
from site_agent.db.models import AuditEventRow
from site_agent.db.tx import open_site_db
from site_agent.errors import CoordinatorRefusedError
from site_agent.link.client import ShownChunk, SumEvidenceAnswer, SumWitness
from site_agent.state.public_state import PublicStateStore
from site_agent.supervision.sum_check import SumChecker

FederationOf = Callable[..., Any]
SITES = ("alpha", "beta", "gamma")
RUN_ID = RunId("run-" + "b" * 26)


def add_one(total: RingVector) -> None:
    total.ring32[5] += 1


def weigh_more(total: RingVector) -> None:
    total.ring64[0] += 1


def events(site: Any) -> list[tuple[str, dict[str, object]]]:
    def read(session: Session) -> list[tuple[str, dict[str, object]]]:
        rows = session.scalars(select(AuditEventRow.body).order_by(AuditEventRow.seq))
        recorded = [event_from_bytes(bytes(row)) for row in rows]
        return [(one.event.kind.value, dict(one.event.facts)) for one in recorded]

    db = open_site_db(site.folder / "site.db")
    try:
        return db.run_read("events", read)
    finally:
        db.close()


def reasons(federation: Any, kind: str) -> dict[str, list[object]]:
    return {
        name: [facts.get("reason") for found, facts in events(site) if found == kind]
        for name, site in federation.sites.items()
    }


async def refuse_the_first_result(federation: Any, reason: str) -> None:
    """Every site refuses the result of round 0, says so once in its log, acknowledges nothing and folds nothing."""
    await federation.run(lambda: all(reasons(federation, "result.refused").values()))
    assert federation.coordinator.acknowledged.get(0, {}) == {}
    for found in reasons(federation, "result.refused").values():
        assert found == [reason]
    for site in federation.sites.values():
        assert newest_version(site) == 0


def newest_version(site: Any) -> int:
    site.seams()
    try:
        found = PublicStateStore(site.folder / "states", site.db, SystemClock()).newest(RUN_ID)
    finally:
        site.db.close()
    assert found is not None
    return int(found.version)


@pytest.mark.parametrize("lie", [add_one, weigh_more])
async def test_false_sum_is_refused_by_every_site(federation_of: FederationOf, lie: Callable[..., None]) -> None:
    federation = federation_of(n_sites=3, rounds=2)
    federation.coordinator.falsifies = lie
    await refuse_the_first_result(federation, "sum-false")
    assert all(set(found) == {"sum-false"} for found in reasons(federation, "sum.refused").values())


async def test_true_sum_is_recorded_as_checked_before_it_is_acknowledged(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    await federation.run_to_the_end()
    for site in federation.sites.values():
        checks = [facts for kind, facts in events(site) if kind == "sum.checked"]
        assert {facts["round_index"] for facts in checks} == {0, 1}
        assert all(
            (facts["by"], facts["n_sites"], facts["chunks_checked"]) == ("reexecution", 3, 1) for facts in checks
        )


async def test_evidence_with_an_invented_secret_is_refused(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=2)
    coordinator = federation.coordinator

    def forged(site: SiteId, round_index: int) -> SumEvidenceAnswer:
        true = SumEvidence.decode(coordinator.evidence[round_index])
        false = SumEvidence(
            m1s=true.m1s, m3_headers=true.m3_headers, m5s=true.m5s, secrets=(bytes(31) + b"\x01", *true.secrets[1:])
        )
        return SumEvidenceAnswer(evidence=false.encode())

    coordinator.sum_evidence = forged
    await refuse_the_first_result(federation, "sum-evidence-invalid")


async def test_evidence_of_other_survivors_than_m10_names_is_refused(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=2)
    coordinator = federation.coordinator

    def forged(site: SiteId, round_index: int) -> SumEvidenceAnswer:
        true = SumEvidence.decode(coordinator.evidence[round_index])
        false = SumEvidence(m1s=true.m1s, m3_headers=true.m3_headers, m5s=true.m5s[:2], secrets=true.secrets)
        return SumEvidenceAnswer(evidence=false.encode())

    coordinator.sum_evidence = forged
    await refuse_the_first_result(federation, "sum-evidence-invalid")


async def test_chunk_that_was_altered_to_fit_the_lie_is_refused(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=2)
    coordinator = federation.coordinator
    coordinator.falsifies = add_one
    true_chunk = coordinator.masked_chunk

    def altered(site: SiteId, round_index: int, of_site: SiteId, chunk_index: int) -> MaskedChunk:
        chunk = true_chunk(site, round_index, of_site, chunk_index)
        if of_site != "alpha":
            return chunk
        word = (int.from_bytes(chunk.data[20:24], "little") + 1) % 2**32
        data = chunk.data[:20] + word.to_bytes(4, "little") + chunk.data[24:]
        return MaskedChunk(data=data, path=chunk.path)

    coordinator.masked_chunk = altered
    await refuse_the_first_result(federation, "sum-false")
    assert all(set(found) == {"chunk-invalid"} for found in reasons(federation, "sum.refused").values())


@pytest.mark.parametrize("status", ["NOT_FOUND", "UNIMPLEMENTED"])
async def test_coordinator_that_shows_no_evidence_is_refused(federation_of: FederationOf, status: str) -> None:
    federation = federation_of(n_sites=3, rounds=2)

    def withheld(site: SiteId, round_index: int) -> SumEvidenceAnswer:
        raise CoordinatorRefusedError("no", status=status, refusal_code="", call="GetSumEvidence")

    federation.coordinator.sum_evidence = withheld
    await refuse_the_first_result(federation, "sum-evidence-withheld")


async def test_coordinator_that_withholds_one_site_s_chunk_is_refused(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=2)
    coordinator = federation.coordinator
    true_chunk = coordinator.masked_chunk

    def withheld(site: SiteId, round_index: int, of_site: SiteId, chunk_index: int) -> MaskedChunk:
        if of_site == "gamma":
            raise CoordinatorRefusedError("no", status="NOT_FOUND", refusal_code="not-found", call="GetMaskedChunk")
        return true_chunk(site, round_index, of_site, chunk_index)

    coordinator.masked_chunk = withheld
    await refuse_the_first_result(federation, "sum-evidence-withheld")


def end_early(shown: list[ShownChunk]) -> list[ShownChunk]:
    return shown[:-1]


def leave_one_out(shown: list[ShownChunk]) -> list[ShownChunk]:
    return [each for each in shown if each.site_id != "beta"]


def show_one_twice(shown: list[ShownChunk]) -> list[ShownChunk]:
    return [shown[0], *shown]


def swap_the_names(shown: list[ShownChunk]) -> list[ShownChunk]:
    first, second, *rest = shown
    return [
        dataclasses.replace(first, site_id=second.site_id),
        dataclasses.replace(second, site_id=first.site_id),
        *rest,
    ]


def show_another_chunk(shown: list[ShownChunk]) -> list[ShownChunk]:
    return [dataclasses.replace(each, chunk_index=each.chunk_index + 1) for each in shown]


@pytest.mark.parametrize("lie", [end_early, leave_one_out, show_one_twice, swap_the_names, show_another_chunk])
async def test_window_that_does_not_hold_each_survivor_s_chunk_in_its_place_is_refused(
    federation_of: FederationOf, lie: Callable[[list[ShownChunk]], list[ShownChunk]]
) -> None:
    federation = federation_of(n_sites=3, rounds=2)
    coordinator = federation.coordinator
    true_window = coordinator.masked_window
    coordinator.masked_window = lambda site, round_index, chunks: lie(list(true_window(site, round_index, chunks)))
    await refuse_the_first_result(federation, "sum-evidence-withheld")


async def test_evidence_said_to_be_scrubbed_while_the_window_is_open_is_refused(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=2)
    coordinator = federation.coordinator
    true_manifest = coordinator.make_manifest
    coordinator.make_manifest = lambda: true_manifest(opened_at=datetime.now(UTC).isoformat())
    coordinator.open_round()
    coordinator.sum_evidence = lambda site, round_index: SumEvidenceAnswer(evidence=b"")
    await refuse_the_first_result(federation, "sum-evidence-withheld")


@pytest.mark.parametrize(("days_ago", "window_s"), [(1, 86_400), (300, 86_400), (1, 0)])
async def test_window_that_is_said_to_have_closed_before_this_site_joined_is_open(
    federation_of: FederationOf, days_ago: int, window_s: int
) -> None:
    """A coordinator dates its round back, shows one site its sum's evidence, and tells the others that it is gone."""
    federation = federation_of(n_sites=3, rounds=2, changes={"secure_aggregation.audit_window_s": window_s})
    coordinator = federation.coordinator
    true_manifest, true_evidence = coordinator.make_manifest, coordinator.sum_evidence
    opened_at = (datetime.now(UTC) - timedelta(days=days_ago)).isoformat()
    coordinator.make_manifest = lambda: true_manifest(opened_at=opened_at)
    coordinator.open_round()

    def shown_to_alpha(site: SiteId, round_index: int) -> SumEvidenceAnswer:
        if site == "alpha":
            return true_evidence(site, round_index)
        if "alpha" not in coordinator.acknowledged.get(round_index, {}):
            raise CoordinatorRefusedError("later", status="FAILED_PRECONDITION", refusal_code="", call="x")
        return SumEvidenceAnswer(evidence=b"", witnesses=(witness("alpha", coordinator),))

    coordinator.sum_evidence = shown_to_alpha
    deceived = {"beta", "gamma"}
    await federation.run(
        lambda: (
            all(reasons(federation, "result.refused")[name] for name in deceived)
            or any(set(sites) & deceived for sites in coordinator.acknowledged.values())
        )
    )
    assert set(coordinator.acknowledged[0]) == {"alpha"}
    found = reasons(federation, "result.refused")
    assert {name: found[name] for name in deceived} == {name: ["sum-evidence-withheld"] for name in deceived}


class LateClock:
    """Shows a time at which the window of round 0 is closed, as soon as its result is there."""

    def __init__(self, coordinator: Any) -> None:
        self.coordinator = coordinator

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(days=2 if 0 in self.coordinator.results else 0)


def let_windows_close(federation: Any) -> None:
    """All sites ask for the evidence of round 0 days after it ended."""
    for site in federation.sites.values():
        site.clock = LateClock(federation.coordinator)


def witness(name: str, coordinator: Any, *, signer: str | None = None) -> SumWitness:
    """A peer's word on the result of round 0, perhaps with another key than its own."""
    key = seeded_signer(signer or name)
    site = SiteId(name)
    _, published = coordinator.results[0]
    said = coordinator.acknowledged[0].get(site) or acknowledgement_body(published)
    return SumWitness(site_id=site, signing_spki=key.spki_der, acknowledgement=sign_body(key, "WR/sig/ack", said))


def acknowledgement_body(published: Any) -> bytes:
    # As docs/protocol/secagg.md describes it: run, round, SHA-256 of M10, digest of the state.
    digest = hashlib.sha256(published.message).digest()
    return pack(published.exchange.run_id.encode(), u32(0), digest, bytes(32))


async def test_scrubbed_evidence_is_replaced_by_the_word_of_a_site_that_checked(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    let_windows_close(federation)
    coordinator = federation.coordinator
    true_evidence = coordinator.sum_evidence

    def scrubbed(site: SiteId, round_index: int) -> SumEvidenceAnswer:
        # The window of round 0 is closed. Gamma asks when two have checked and acknowledged.
        if site != "gamma":
            return true_evidence(site, round_index)
        if len(coordinator.acknowledged.get(round_index, {})) < 2:
            raise CoordinatorRefusedError("later", status="FAILED_PRECONDITION", refusal_code="", call="x")
        if round_index:
            return true_evidence(site, round_index)
        return SumEvidenceAnswer(evidence=b"", witnesses=(witness("alpha", coordinator),))

    coordinator.sum_evidence = scrubbed
    await federation.run_to_the_end()
    checks = [facts for kind, facts in events(federation.sites["gamma"]) if kind == "sum.checked"]
    assert [facts["by"] for facts in checks] == ["witnesses", "reexecution"]
    assert checks[0]["n_witnesses"] == 1


@pytest.mark.parametrize("forged", ["own word", "another key", "another result", "a stranger", "nobody"])
async def test_word_that_is_no_approved_peer_s_on_this_result_counts_for_nothing(
    federation_of: FederationOf, forged: str
) -> None:
    federation = federation_of(n_sites=3, rounds=2)
    let_windows_close(federation)
    coordinator = federation.coordinator

    def scrubbed(site: SiteId, round_index: int) -> SumEvidenceAnswer:
        coordinator.acknowledged.setdefault(0, {})
        peer = next(name for name in SITES if name != site)
        witnesses = {
            "own word": (witness(site, coordinator),),
            "another key": (witness(peer, coordinator, signer="stranger"),),
            "another result": (witness_of_another(peer),),
            "a stranger": (witness("stranger", coordinator),),
            "nobody": (),
        }[forged]
        return SumEvidenceAnswer(evidence=b"", witnesses=witnesses)

    def witness_of_another(name: str) -> SumWitness:
        key, site = seeded_signer(name), SiteId(name)
        body = acknowledgement_body(coordinator.results[0][1]).replace(b"\x00\x00\x00\x00", b"\x00\x00\x00\x01", 1)
        return SumWitness(site_id=site, signing_spki=key.spki_der, acknowledgement=sign_body(key, "WR/sig/ack", body))

    coordinator.sum_evidence = scrubbed
    await refuse_the_first_result(federation, "sum-unwitnessed")


async def test_call_that_fails_is_asked_again_for_the_same_chunk(
    federation_of: FederationOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that lets calls fail until the draw misses its lie waits for ever: the draw never changes."""
    federation = federation_of(n_sites=3, rounds=1)
    seeds: dict[str, set[bytes]] = {}
    true_seed = SumChecker._seed  # what is drawn is nowhere else to be seen

    def noted(checker: SumChecker, published: Any) -> bytes:
        drawn = true_seed(checker, published)
        seeds.setdefault(f"{checker._seams.site_id}/{published.exchange.round_index}", set()).add(drawn)
        return drawn

    monkeypatch.setattr(SumChecker, "_seed", noted)
    coordinator = federation.coordinator
    true_chunk, n_failed = coordinator.masked_chunk, 0

    def failing(site: SiteId, round_index: int, of_site: SiteId, chunk_index: int) -> MaskedChunk:
        nonlocal n_failed
        if n_failed < 12:
            n_failed += 1
            raise CoordinatorRefusedError("busy", status="RESOURCE_EXHAUSTED", refusal_code="", call="x")
        return true_chunk(site, round_index, of_site, chunk_index)

    coordinator.masked_chunk = failing
    await federation.run_to_the_end()
    assert n_failed == 12
    assert all(len(drawn) == 1 for drawn in seeds.values())
    # Each site, and each result, has a draw of its own.
    assert len({next(iter(drawn)) for drawn in seeds.values()}) == len(seeds) == 6


@pytest.mark.parametrize("is_same_body", [False, True])
async def test_second_result_of_an_exchange_brings_no_second_draw(
    federation_of: FederationOf, monkeypatch: pytest.MonkeyPatch, is_same_body: bool
) -> None:
    """A coordinator that sees a draw hit its lie shows another M10, or the same under a fresh signature, and hopes."""
    federation = federation_of(n_sites=3, rounds=2)
    coordinator = federation.coordinator
    coordinator.falsifies = add_one
    draws: set[bytes] = set()
    true_seed = SumChecker._seed  # what is drawn is nowhere else to be seen

    def noted(checker: SumChecker, published: Any) -> bytes:
        drawn = true_seed(checker, published)
        if checker._seams.site_id == "alpha":
            draws.add(drawn)
        return drawn

    monkeypatch.setattr(SumChecker, "_seed", noted)
    # Once refused, the round is over for a site; then it refuses the same result as one that it is offered again.
    await federation.run(lambda: all("sum-false" in found for found in codes(federation).values()))
    assert len(draws) == 1

    manifest, published = coordinator.results[0]
    m10 = SignedBody.decode(published.message)
    said = ExchangeResult.decode(m10.body)
    other = m10.body if is_same_body else dataclasses.replace(said, transcript_root=b"\x07" * 32).encode()
    coordinator.results[0] = (manifest, dataclasses.replace(published, message=randomly_signed(other).encode()))
    assert coordinator.results[0][1] != published
    before = {name: len(found) for name, found in codes(federation).items()}
    told = "sum-false" if is_same_body else "result-changed"
    await federation.run(lambda: all(told in found[before[name] :] for name, found in codes(federation).items()))
    assert len(draws) == 1


def randomly_signed(body: bytes) -> SignedBody:
    """M10 under a valid signature of the coordinator's that is not the one of RFC 6979."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    signed = sign_body(seeded_signer("coordinator"), "SA1/sig/M10", body)
    r, s = decode_dss_signature(signed.signature)
    return SignedBody(body=body, signature=encode_dss_signature(r, order - s))


def codes(federation: Any) -> dict[str, list[object]]:
    """Which refusals of instructions each site recorded."""
    return {
        name: [facts["code"] for kind, facts in events(site) if kind == "call.refused"]
        for name, site in federation.sites.items()
    }
