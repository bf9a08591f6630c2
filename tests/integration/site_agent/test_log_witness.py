"""A coordinator whose audit log is not the one that the sites saw: each way to show two histories, refused, recorded.

The log of the coordinator here is a list of leaves that a test may rewrite; heads and proofs follow from it as the real
coordinator's follow from its rows.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from fl_protocol.audit.events import AuditEvent, AuditKind, event_from_bytes
from fl_protocol.audit.restored import RestoredStatement, sign_restored
from fl_protocol.signing.signed import SignedBody, verify_body
from fl_protocol.spec.round_spec import RoundManifest
from fl_protocol.testing.entropy import seeded_signer
from site_agent.db.models import AuditEventRow
from site_agent.db.tx import open_site_db
from site_agent.link import instructions as asked
from site_agent.session.events import DeclineKind

FederationOf = Callable[..., Any]
COORDINATOR = seeded_signer("coordinator")


def events_of(site: Any) -> Iterator[AuditEvent]:
    def read(session: Session) -> list[bytes]:
        return list(session.scalars(select(AuditEventRow.body).order_by(AuditEventRow.seq)))

    db = open_site_db(site.folder / "site.db")
    for body in db.run_read("events", read):
        yield event_from_bytes(body).event
    db.close()


def of_kind(site: Any, kind: AuditKind) -> list[AuditEvent]:
    return [event for event in events_of(site) if event.kind is kind]


def leaf(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def reopen(coordinator: Any) -> None:
    """Another attempt at the round, so that there is a new M0."""
    coordinator.round_attempt += 1
    coordinator.open_round()


async def committed_once(federation_of: FederationOf) -> Any:
    """A federation that works on the second of two rounds: every site saw heads of three rows and of six."""
    federation = federation_of(n_sites=3, rounds=2)
    coordinator = federation.coordinator
    open_round = coordinator.open_round

    def open_and_hold() -> None:
        open_round()
        coordinator.holds_back = asked.OpenExchange

    coordinator.open_round = open_and_hold
    await federation.run(lambda: coordinator.round_index == 1 and len(coordinator.ready) == 3)
    coordinator.open_round = open_round
    coordinator.holds_back = None
    return federation


async def declined_by_all(federation: Any) -> set[tuple[DeclineKind, str]]:
    coordinator = federation.coordinator
    await federation.run(lambda: len({site for site, *_ in coordinator.declined}) == 3)
    return {(kind, reason) for _, kind, reason in coordinator.declined}


async def test_each_head_that_was_shown_and_proven_is_in_the_site_s_log_with_the_signed_manifest(
    federation_of: FederationOf,
) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    await federation.run_to_the_end()
    assert federation.coordinator.declined == []
    for site in federation.sites.values():
        shown = of_kind(site, AuditKind.CHECKPOINT_WITNESSED)
        assert [event.facts["log_size"] for event in shown] == [3, 6]
        for event in shown:
            size = event.facts["log_size"]
            assert event.facts["log_head"] == federation.coordinator.log.head(size)
            signed = SignedBody.decode(base64.b64decode(event.facts["manifest"]))
            manifest = RoundManifest.decode(verify_body(COORDINATOR.spki_der, "SA1/sig/M0", signed))
            assert (manifest.audit_size, manifest.audit_head) == (size, event.facts["log_head"])


def rewrite_first(coordinator: Any) -> None:
    coordinator.log.leaves[0] = leaf("another")


def forget_and_go_on(coordinator: Any) -> None:
    coordinator.log.leaves[:] = [*coordinator.log.leaves[:2], *(leaf(f"branch {number}") for number in range(20))]


def forget(coordinator: Any) -> None:
    del coordinator.log.leaves[1:]


def another_tail_of_the_same_length(coordinator: Any) -> None:
    # The M0 that follows adds three leaves to what it finds.
    del coordinator.log.leaves[3:]
    coordinator.log.leaves[2] = leaf("another")


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (rewrite_first, "proof-invalid"),
        (forget_and_go_on, "proof-invalid"),
        (forget, "log-shorter"),
        (another_tail_of_the_same_length, "one-size-two-heads"),
    ],
)
async def test_log_that_does_not_continue_what_was_seen_is_refused_and_recorded(
    federation_of: FederationOf, change: Callable[[Any], None], finding: str
) -> None:
    federation = await committed_once(federation_of)
    coordinator = federation.coordinator
    change(coordinator)
    reopen(coordinator)
    assert await declined_by_all(federation) == {(DeclineKind.REFUSED, "history-forked")}
    for site in federation.sites.values():
        (fork,) = of_kind(site, AuditKind.HISTORY_FORKED)
        assert fork.facts["log"] == "coordinator"
        assert fork.facts["log_size"] == len(coordinator.log.leaves)
        signed = SignedBody.decode(base64.b64decode(fork.facts["manifest"]))
        # The coordinator's own signature over the second history.
        shown = RoundManifest.decode(verify_body(COORDINATOR.spki_der, "SA1/sig/M0", signed))
        assert shown.audit_head == coordinator.log.head()
        assert (fork.facts["seen_size"], fork.facts["finding"]) == (6, finding)


async def test_coordinator_that_goes_back_to_the_history_that_was_seen_is_joined_again(
    federation_of: FederationOf,
) -> None:
    federation = await committed_once(federation_of)
    coordinator = federation.coordinator
    right = list(coordinator.log.leaves)
    rewrite_first(coordinator)
    reopen(coordinator)
    await declined_by_all(federation)
    coordinator.log.leaves[:] = right
    coordinator.declined.clear()
    reopen(coordinator)
    await federation.run_to_the_end()
    assert coordinator.declined == []


async def test_memory_that_was_deleted_comes_back_out_of_the_site_s_own_log(federation_of: FederationOf) -> None:
    federation = await committed_once(federation_of)
    coordinator = federation.coordinator
    for site in federation.sites.values():
        (site.folder / "coordinator_log.json").unlink()
    rewrite_first(coordinator)
    reopen(coordinator)
    assert await declined_by_all(federation) == {(DeclineKind.REFUSED, "history-forked")}


async def test_coordinator_that_gives_no_proof_is_not_joined_and_not_accused(federation_of: FederationOf) -> None:
    federation = await committed_once(federation_of)
    coordinator = federation.coordinator
    coordinator.log.refuses_with = "method-unknown"
    reopen(coordinator)
    assert await declined_by_all(federation) == {(DeclineKind.REFUSED, "history-unproven")}
    assert all(of_kind(site, AuditKind.HISTORY_FORKED) == [] for site in federation.sites.values())


def restored_to(coordinator: Any, size: int) -> SignedBody:
    """The statement that the log was set back to its first ``size`` rows, and the log after it."""
    del coordinator.log.leaves[size:]
    now = datetime(2026, 1, 3, tzinfo=UTC)
    head = coordinator.log.head()
    statement = RestoredStatement(origin="coordinator", epoch=1, size=size, head=head, backup_made_at=now, at=now)
    coordinator.log.leaves += [leaf("restored"), leaf("acknowledged")]
    return sign_restored(COORDINATOR, statement)


async def test_restore_that_was_told_is_no_fork(federation_of: FederationOf) -> None:
    federation = await committed_once(federation_of)
    coordinator = federation.coordinator
    statement = restored_to(coordinator, 4)
    for site in federation.sites.values():
        site.note_restored(statement)
    reopen(coordinator)
    await federation.run_to_the_end()
    assert coordinator.declined == []
    for site in federation.sites.values():
        assert of_kind(site, AuditKind.HISTORY_FORKED) == []
        (event,) = of_kind(site, AuditKind.COORDINATOR_RESTORED)
        assert event.facts["restored_size"] == 4


async def test_restore_does_not_cover_a_rewriting_of_what_was_seen_before_the_backup(
    federation_of: FederationOf,
) -> None:
    federation = await committed_once(federation_of)
    coordinator = federation.coordinator
    # The site saw three rows when the backup had four: those three cannot have become others by a restore.
    rewrite_first(coordinator)
    statement = restored_to(coordinator, 4)
    for site in federation.sites.values():
        site.note_restored(statement)
    reopen(coordinator)
    assert await declined_by_all(federation) == {(DeclineKind.REFUSED, "history-forked")}
