"""Two logs side by side: what a party signed to the other must be in its own export."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import pytest

from fl_protocol.audit.chain import LogTip, TreeHead, append_event
from fl_protocol.audit.checkpoint import Checkpoint, sign_checkpoint
from fl_protocol.audit.events import AuditEvent, AuditFact, AuditKind
from fl_protocol.ids import RunId, Sha256Hex, SiteId
from fl_protocol.secagg.messages import AuditHeads, KeyAdvertisement
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import sign_body
from fl_protocol.spec.round_spec import NO_DIGEST, RoundKind, RoundManifest
from fl_protocol.testing.entropy import seeded_signer
from wardround.errors import EvidenceFaultError
from wardround.evidence.audit_export import VerifiedLog
from wardround.evidence.compare_logs import ComparedSite, compare_exports

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
COORDINATOR, SITE, MALLORY = seeded_signer("coordinator"), seeded_signer("charite"), seeded_signer("mallory")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Log:
    """A party's log: rows, heads, and the export of it."""

    def __init__(self, origin: str, signer: Signer) -> None:
        self.origin, self.signer = origin, signer
        self.tip = LogTip()
        self.heads = [self.tip.head()]
        self.bodies: list[bytes] = []

    def add(self, kind: AuditKind = AuditKind.PROCESS_STARTED, facts: Mapping[str, AuditFact] | None = None) -> None:
        event = AuditEvent(kind=kind, at=AT, actor="somebody", facts=facts or {"n": len(self.bodies)})
        self.tip, row = append_event(self.tip, event)
        self.bodies.append(row.body)
        self.heads.append(self.tip.head())

    def grow(self, n_rows: int) -> Log:
        for _ in range(n_rows):
            self.add()
        return self

    def export(self) -> Iterator[str]:
        yield json.dumps({"log": "wardround-audit", "origin": self.origin, "signing_spki": b64(self.signer.spki_der)})
        for seq, body in enumerate(self.bodies):
            yield json.dumps({"seq": seq, "body": b64(body)})
        head = self.heads[-1]
        checkpoint = Checkpoint(origin=self.origin, size=head.size, head=head.root, at=AT)
        signed = sign_checkpoint(self.signer, checkpoint)
        yield json.dumps({"checkpoint": {"body": b64(signed.body), "signature": b64(signed.signature)}})


def manifest(head: TreeHead, *, signer: Signer = COORDINATOR) -> str:
    """M0 that names this head, signed, as a site writes it down."""
    digest = Sha256Hex("ab" * 32)
    body = RoundManifest(
        run_id=RunId("run-" + "b" * 26),
        round_index=0,
        round_attempt=0,
        kind=RoundKind.TRAIN,
        suite="SA1",
        run_spec_sha256=digest,
        public_state_sha256=digest,
        public_state_version=0,
        previous_result_sha256=NO_DIGEST,
        payload_layout_sha256=digest,
        min_cohort=3,
        audit_window_s=86_400,
        opened_at="2026-01-02T03:04:05+00:00",
        audit_size=head.size,
        audit_head=head.root,
    )
    return b64(sign_body(signer, "SA1/sig/M0", body.encode()).encode())


def advertisement(head: TreeHead, *, signer: Signer = SITE) -> str:
    """M1 that names this head, signed, as the coordinator writes it down."""
    body = KeyAdvertisement(
        site=SiteId("charite"),
        h_manifest=bytes(32),
        mask_key=bytes(32),
        transport_key=bytes(32),
        b_commitment=bytes(32),
        spki_der=signer.spki_der,
        heads=AuditHeads(size=head.size, head=bytes.fromhex(head.root)),
    )
    return b64(sign_body(signer, "SA1/sig/M1", body.encode()).encode())


def shown(site: Log, head: TreeHead, *, epoch: int = 0, signed: str | None = None, kind: str = "witnessed") -> None:
    facts: dict[str, AuditFact] = {"log_size": head.size, "log_head": head.root, "epoch": epoch}
    facts["manifest"] = manifest(head) if signed is None else signed
    if kind == "forked":
        site.add(AuditKind.HISTORY_FORKED, {**facts, "log": "coordinator"})
    else:
        site.add(AuditKind.CHECKPOINT_WITNESSED, facts)


def told(coordinator: Log, head: TreeHead, *, signed: str | None = None) -> None:
    statement = advertisement(head) if signed is None else signed
    facts: dict[str, AuditFact] = {"log_size": head.size, "log_head": head.root, "statement": statement}
    coordinator.add(AuditKind.KEYS_ADVERTISED, {**facts, "site_id": "charite"})


def restored(coordinator: Log, size: int) -> None:
    facts: dict[str, AuditFact] = {"epoch": 1, "restored_size": size, "restored_head": coordinator.heads[size].root}
    coordinator.add(AuditKind.COORDINATOR_RESTORED, facts)


@pytest.fixture
def coordinator() -> Log:
    return Log("wardround://coordinator", COORDINATOR).grow(300)


@pytest.fixture
def site() -> Log:
    return Log("site:charite", SITE).grow(20)


def compare(coordinator: Log, *sites: Log) -> tuple[VerifiedLog, tuple[ComparedSite, ...]]:
    return compare_exports(list(coordinator.export()), [list(site.export()) for site in sites])


def refused(coordinator: Log, *sites: Log) -> dict[str, object]:
    with pytest.raises(EvidenceFaultError) as caught:
        compare(coordinator, *sites)
    assert caught.value.exit_code == 1
    return dict(caught.value.facts)


def test_logs_that_fit_are_told_with_what_was_compared(coordinator: Log, site: Log) -> None:
    for size in (1, 256, 257, 300):
        shown(site, coordinator.heads[size])
    told(coordinator, site.heads[7])
    told(coordinator, site.heads[21])
    verified, (compared,) = compare(coordinator, site)
    assert verified.size == 302
    assert compared == ComparedSite(origin="site:charite", size=24, n_shown=4, n_lost=0, n_told=2)


@pytest.mark.parametrize("kind", ["witnessed", "forked"])
def test_coordinator_that_showed_another_head_is_named_with_the_site_s_row(
    coordinator: Log, site: Log, kind: str
) -> None:
    other = Log("wardround://coordinator", COORDINATOR).grow(100)
    other.add(AuditKind.RUN_CANCELLED)
    shown(site, coordinator.heads[50])
    shown(site, other.heads[101], kind=kind)
    assert refused(coordinator, site) == {
        "kind": "two-histories",
        "party": "wardround://coordinator",
        "witness": "site:charite",
        "row": 21,
        "size": 101,
    }


def test_export_that_ends_before_what_was_shown_is_refused(coordinator: Log, site: Log) -> None:
    longer = Log("wardround://coordinator", COORDINATOR).grow(310)
    shown(site, longer.heads[305])
    assert refused(coordinator, site)["kind"] == "shorter-than-stated"


def test_one_site_of_three_suffices(coordinator: Log) -> None:
    sites = [Log("site:charite", SITE).grow(3) for _ in range(3)]
    for each in sites:
        shown(each, coordinator.heads[40])
    shown(sites[2], Log("x", COORDINATOR).grow(1).heads[1])
    # Its one row is the same in both: no conflict yet.
    compare(coordinator, *sites)
    other = Log("x", COORDINATOR)
    other.add(AuditKind.RUN_CANCELLED)
    shown(sites[2], other.heads[1])
    assert refused(coordinator, *sites)["row"] == 5


def test_head_that_a_restore_took_back_is_no_second_history(coordinator: Log, site: Log) -> None:
    lost = Log("wardround://coordinator", COORDINATOR).grow(300)
    lost.add(AuditKind.RUN_CANCELLED)
    shown(site, coordinator.heads[200])
    shown(site, lost.heads[301])
    restored(coordinator, 300)
    shown(site, coordinator.heads[301], epoch=1)
    _, (compared,) = compare(coordinator, site)
    assert (compared.n_shown, compared.n_lost) == (3, 1)


@pytest.mark.parametrize(("size", "epoch"), [(280, 0), (301, 1)])
def test_restore_excuses_nothing_below_its_size_and_nothing_after_it(
    coordinator: Log, site: Log, size: int, epoch: int
) -> None:
    other = Log("wardround://coordinator", COORDINATOR).grow(size - 1)
    other.add(AuditKind.RUN_CANCELLED)
    shown(site, other.heads[size], epoch=epoch)
    restored(coordinator, 300)
    assert refused(coordinator, site)["kind"] == "two-histories"


def test_site_that_stated_another_head_of_its_own_log_is_named(coordinator: Log, site: Log) -> None:
    other = Log("site:charite", SITE).grow(9)
    other.add(AuditKind.RUN_CANCELLED)
    told(coordinator, other.heads[10])
    assert refused(coordinator, site) == {
        "kind": "two-histories",
        "party": "site:charite",
        "witness": "wardround://coordinator",
        "row": 300,
        "size": 10,
    }


def test_claim_that_the_other_party_did_not_sign_accuses_nobody(coordinator: Log, site: Log) -> None:
    invented = TreeHead(size=50, root=Sha256Hex("cd" * 32))
    for signed in (manifest(invented, signer=MALLORY), manifest(coordinator.heads[50]), "no base 64"):
        lying = Log("site:charite", SITE).grow(2)
        shown(lying, invented, signed=signed)
        assert refused(coordinator, lying)["kind"] == "not-signed-by-the-party"
    told(coordinator, TreeHead(size=5, root=Sha256Hex("cd" * 32)), signed=advertisement(site.heads[5], signer=MALLORY))
    assert refused(coordinator, site)["kind"] == "not-signed-by-the-party"


def test_exports_in_the_wrong_places_are_refused(coordinator: Log, site: Log) -> None:
    with pytest.raises(EvidenceFaultError, match="must be the coordinator's"):
        compare(site, site)
    with pytest.raises(EvidenceFaultError, match="not a site's"):
        compare(coordinator, coordinator)
