"""A coordinator is backed up while it serves, lost and restored: what the run does, and what is never repeated."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from coordinator_engine_lab import COORDINATOR, EngineLab, parts_of
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.models import AuditCheckpoint, AuditRow, Base, Round
from coordinator.driver.janitor import Janitor
from coordinator.errors import ConflictError
from coordinator.services.accept_upload import UploadTruncatedError, accept_upload
from coordinator.services.describe_run import waiting_for
from coordinator.services.epochs import acknowledge_restore, meet_site, show_epochs
from coordinator.services.poll_instruction import poll_instruction
from coordinator.services.site_instructions import AbandonRound, RelayConfirmations, RelayShares
from coordinator.upkeep.archive import open_archive
from coordinator.upkeep.backup import make_backup
from coordinator.upkeep.errors import (
    BackupDiskFullError,
    BackupExistsError,
    BackupIncompleteError,
    BackupInvalidError,
    BackupUnreadableError,
    RestoreTargetError,
)
from coordinator.upkeep.restore import RestoreOptions, restore_backup
from fl_protocol.audit.chain import AuditRow as Leaf
from fl_protocol.audit.events import AuditKind, event_from_bytes
from fl_protocol.audit.restored import verify_restored
from fl_protocol.audit.verify import AuditVerified, verify_log
from fl_protocol.ids import SiteId
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.round_spec import RoundManifest


def _load() -> ModuleType:
    name = "coordinator_restore_lab"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("restore_lab.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


restoring: Any = _load()


def acknowledge(lab: EngineLab) -> None:
    lab.db.run_tx("ack", lambda session: acknowledge_restore(session, actor="user:maria", now=lab.clock.now()))


def said_of_run(lab: EngineLab) -> str:
    return lab.db.read("say", lambda session: waiting_for(session, lab.run(), lab.clock.at))


def verified_log(lab: EngineLab) -> list[str]:
    def read(session: Session) -> tuple[list[Leaf], list[str], list[SignedBody]]:
        rows = list(session.scalars(select(AuditRow).order_by(AuditRow.seq)))
        heads = session.scalars(select(AuditCheckpoint))
        leaves = [Leaf(seq=row.seq, body=row.body, leaf_sha256=row.leaf_sha256) for row in rows]  # type: ignore[arg-type]
        return leaves, [row.kind for row in rows], [SignedBody(body=h.body, signature=h.signature) for h in heads]

    rows, kinds, heads = lab.db.read("audit", read)
    assert isinstance(verify_log(rows, heads, COORDINATOR.spki_der), AuditVerified)
    return kinds


async def upload_half(lab: EngineLab, name: str, relay: RelayShares) -> None:
    site = lab.sites[SiteId(name)]
    site.mask(relay.exchange, relay.m4)
    m5 = site.role(relay.exchange).last_message
    assert m5 is not None
    half = site.uploads[relay.exchange][:64]
    with pytest.raises(UploadTruncatedError):
        await accept_upload(
            lab.ctx, site_id=site.site_id, exchange=relay.exchange, m5=m5, offset=0, parts=parts_of(half)
        )


async def to_the_upload_of_round_1(lab: EngineLab) -> None:
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    while True:
        asked = await lab.settle_until(RelayShares)
        if any(one.exchange.round_index == 1 for one in asked.values() if isinstance(one, RelayShares)):
            break
    relay = asked[SiteId("a-site")]
    assert isinstance(relay, RelayShares)
    await upload_half(lab, "a-site", relay)


async def test_restore_from_the_middle_of_a_round_goes_on_with_attempts_that_nobody_has_seen(tmp_path: Path) -> None:
    lab, installation = restoring.lab_in_installation(tmp_path / "first")
    await to_the_upload_of_round_1(lab)
    made = restoring.back_up(lab, installation, tmp_path / "backup.tar")
    # It goes on: uploads end, sites confirm, one reveals its shares. All of that is lost.
    for site in lab.sites.values():
        site.silent.add(RelayConfirmations)
    await lab.settle()
    lab.sites[SiteId("b-site")].silent.clear()
    await lab.settle()
    assert "shares.revealed" in verified_log(lab)[made.audit_size :]
    before = {context for site in lab.sites.values() for context in site.roles}
    masked_before = {data for site in lab.sites.values() for data in site.uploads.values()}
    refs_before = {ref for site in lab.sites.values() for ref in site.manifests}
    for site in lab.sites.values():
        site.silent.clear()

    restored, _ = restoring.restore_under(lab, tmp_path / "backup.tar", tmp_path / "second")
    assert restored.epoch == 1
    assert (lab.round(1).state, lab.round(1).reason) == ("ABORTED", "coordinator-restored")
    found = await poll_instruction(
        lab.ctx, site_id=SiteId("a-site"), holding=sorted(lab.sites[SiteId("a-site")].holding), wait_s=0
    )
    assert isinstance(found, AbandonRound)
    assert found.reason == "coordinator-restored"
    await lab.settle()
    # Nothing opens before an admin has seen it, and the run says so.
    assert lab.run().state == "ACTIVE"
    assert all(not site.holding for site in lab.sites.values())
    assert "acknowledge-restore" in said_of_run(lab)
    acknowledge(lab)
    await lab.settle()
    assert (lab.run().state, lab.run().reason) == ("COMPLETED", None)
    after = {context for site in lab.sites.values() for context in site.roles} - before
    assert {(one.round_index, one.round_attempt) for one in after} == {(1, 100_000), (2, 100_000)}
    # Seeds, keys and payloads belong to an attempt, and no attempt is one that was before.
    refs_after = {ref for site in lab.sites.values() for ref in site.manifests} - refs_before
    assert not {(r.round_index, r.round_attempt) for r in refs_after} & {
        (r.round_index, r.round_attempt) for r in refs_before
    }
    masked = [data for site in lab.sites.values() for data in site.uploads.values()]
    assert len(set(masked)) == len(masked)
    assert masked_before < set(masked)
    assert {site.state.digest() for site in lab.sites.values()} == {lab.run().public_state_sha256}
    kinds = verified_log(lab)
    assert kinds[made.audit_size :].count("coordinator.restored") == 1
    assert kinds.count("restore.acknowledged") == 1


async def test_sites_that_are_past_the_backup_end_the_run_with_a_sentence_that_says_so(tmp_path: Path) -> None:
    lab, installation = restoring.lab_in_installation(tmp_path / "first")
    await to_the_upload_of_round_1(lab)
    restoring.back_up(lab, installation, tmp_path / "backup.tar")
    await lab.settle()
    assert lab.run().state == "COMPLETED"
    restoring.restore_under(lab, tmp_path / "backup.tar", tmp_path / "second")
    masked = [data for site in lab.sites.values() for data in site.uploads.values()]
    acknowledge(lab)
    await lab.settle()
    assert lab.run().state == "FAILED"
    assert said_of_run(lab).startswith("Failed: restored-behind-sites: a-site, b-site, c-site hold results")
    # Not a byte was masked for a coordinator that is behind.
    assert masked == [data for site in lab.sites.values() for data in site.uploads.values()]


async def test_heads_that_sites_hold_are_recorded_and_the_restore_is_shown_with_them(tmp_path: Path) -> None:
    lab, installation = restoring.lab_in_installation(tmp_path / "first")
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    made = restoring.back_up(lab, installation, tmp_path / "backup.tar")
    await lab.settle()
    manifest = RoundManifest.decode(lab.round(2).manifest_body)
    restored, _ = restoring.restore_under(lab, tmp_path / "backup.tar", tmp_path / "second")
    assert (restored.audit_size, restored.audit_head) == (made.audit_size, made.audit_head)
    assert manifest.audit_size > made.audit_size
    site, head = SiteId("a-site"), bytes.fromhex(manifest.audit_head)
    said = await meet_site(lab.ctx, site, seen_size=manifest.audit_size, seen_head=head, known_epoch=0)
    assert said is not None
    statement = verify_restored(COORDINATOR.spki_der, said)
    assert (statement.epoch, statement.size, statement.head) == (1, made.audit_size, made.audit_head)
    # Said again it is not recorded again; a site that knows is told no more.
    size = len(verified_log(lab))
    await meet_site(lab.ctx, site, seen_size=manifest.audit_size, seen_head=head, known_epoch=0)
    assert await meet_site(lab.ctx, site, seen_size=3, seen_head=head, known_epoch=1) is None
    assert len(verified_log(lab)) == size
    acknowledge(lab)
    (view,) = lab.db.read("epochs", show_epochs)
    assert view.n_lost == manifest.audit_size - made.audit_size
    assert f"at least {view.n_lost} recorded events after it are lost here and were seen by a-site" in view.sentence()
    facts = lab.db.read(
        "facts",
        lambda session: (
            event_from_bytes(
                session.scalars(
                    select(AuditRow.body).where(AuditRow.kind == AuditKind.RESTORE_ACKNOWLEDGED.value)
                ).one()
            ).event.facts
        ),
    )
    assert facts["heads"] == f"a-site:{manifest.audit_size}:{manifest.audit_head}"


async def test_second_restore_of_a_backup_takes_an_epoch_above_the_first(tmp_path: Path) -> None:
    lab, installation = restoring.lab_in_installation(tmp_path / "first")
    await to_the_upload_of_round_1(lab)
    restoring.back_up(lab, installation, tmp_path / "backup.tar")
    restoring.restore_under(lab, tmp_path / "backup.tar", tmp_path / "second")
    acknowledge(lab)
    await lab.settle(until=lambda: any(ref.round_attempt == 100_000 for ref in lab.sites[SiteId("a-site")].manifests))
    options = RestoreOptions(passphrase=restoring.PASSPHRASE, epoch=2)
    restored, _ = restoring.restore_under(lab, tmp_path / "backup.tar", tmp_path / "third", options=options)
    assert restored.epoch == 2
    acknowledge(lab)
    await lab.settle()
    assert lab.run().state == "COMPLETED"
    assert {row.round_attempt for row in rounds(lab) if row.round_index == 1} == {0, 200_000}
    with pytest.raises(ConflictError):
        restore_backup(
            tmp_path / "backup.tar",
            tmp_path / "fourth",
            clock=lab.clock,
            options=RestoreOptions(passphrase=restoring.PASSPHRASE, epoch=0),
            report=restoring.quiet,
        )
    assert not (tmp_path / "fourth").exists()


def rounds(lab: EngineLab) -> list[Round]:
    return lab.db.read("rounds", lambda session: list(session.scalars(select(Round))))


async def test_everything_but_what_the_epoch_changes_comes_back_as_it_was(tmp_path: Path) -> None:
    lab, installation = restoring.lab_in_installation(tmp_path / "first")
    await lab.settle()
    blobs = sorted(lab.ctx.blobs.iter_digests())
    rows = restoring.rows_of(lab.db)
    before = {table.name: rows(table.name) for table in Base.metadata.sorted_tables}
    made = restoring.back_up(lab, installation, tmp_path / "backup.tar")
    assert made.n_blobs == len(blobs)
    restoring.restore_under(lab, tmp_path / "backup.tar", tmp_path / "second")
    rows = restoring.rows_of(lab.db)
    changed = {"audit_events", "audit_tip", "audit_checkpoints", "coordinator_epochs", "leases", "schema_floor"}
    for name, was in before.items():
        if name not in changed:
            assert rows(name) == was, name
    assert rows("audit_events")[: made.audit_size] == before["audit_events"]
    assert sorted(lab.ctx.blobs.iter_digests()) == blobs
    for name in ("root.key.pem", "signing.key.pem", "release.key.pem", "enrolment.key.pem", "enrolment.pem"):
        first, second = (tmp_path / folder / "keys" / name for folder in ("first", "second"))
        assert second.read_bytes() == first.read_bytes()
        assert second.stat().st_mode == first.stat().st_mode


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    lab, installation = restoring.lab_in_installation(tmp_path / "first")
    made = restoring.back_up(lab, installation, tmp_path / "backup.tar")
    lab.db.dispose()
    assert made.has_keys
    return made.path


def restore(path: Path, folder: Path, **options: Any) -> None:
    class Clock:
        def now(self) -> object:
            from coordinator_engine_lab import START

            return START

    chosen = RestoreOptions(**{"passphrase": restoring.PASSPHRASE, **options})
    restore_backup(path, folder, clock=Clock(), options=chosen, report=restoring.quiet)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "part", ["tables/runs.jsonl", "files/coordinator.yaml", "keys.sealed", "manifest.json", "blob"]
)
def test_backup_that_was_altered_anywhere_restores_nothing(backup: Path, tmp_path: Path, part: str) -> None:
    data = bytearray(backup.read_bytes())
    with tarfile.open(backup) as tar:
        name = next(n for n in tar.getnames() if n.startswith("blobs/")) if part == "blob" else part
        info = tar.getmember(name)
    data[info.offset_data + info.size // 2] ^= 1
    backup.write_bytes(data)
    with pytest.raises(BackupInvalidError):
        restore(backup, tmp_path / "second")
    assert not (tmp_path / "second").exists()
    assert not list(tmp_path.glob(".second*"))


def test_backup_that_is_cut_short_restores_nothing(backup: Path, tmp_path: Path) -> None:
    data = backup.read_bytes()
    for length in (0, 100, len(data) // 2, len(data) - 11_000):
        backup.write_bytes(data[:length])
        with pytest.raises(BackupInvalidError):
            restore(backup, tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_backup_with_a_part_too_much_restores_nothing(backup: Path, tmp_path: Path) -> None:
    (tmp_path / "more").write_text("{}\n")
    with tarfile.open(backup, "a") as tar:
        tar.add(tmp_path / "more", arcname="tables/more.jsonl")
    with pytest.raises(BackupInvalidError):
        restore(backup, tmp_path / "second")


def test_backup_that_a_stranger_signed_anew_restores_nothing(backup: Path, tmp_path: Path) -> None:
    from coordinator.upkeep.archive import new_archive
    from fl_protocol.testing.entropy import seeded_signer

    stranger = seeded_signer("stranger")
    with open_archive(backup) as archive, new_archive(tmp_path / "forged.tar") as forged:
        for name in archive.names:
            forged.add(name, archive.iter_chunks(name))
        document = {k: v for k, v in archive.document.items() if k not in ("members", "format")}
        forged.finish({**document, "signing_spki": stranger.spki_der.hex()}, stranger)
    with pytest.raises(BackupUnreadableError):
        restore(tmp_path / "forged.tar", tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_restore_needs_the_right_passphrase_and_an_empty_place(backup: Path, tmp_path: Path) -> None:
    with pytest.raises(BackupUnreadableError):
        restore(backup, tmp_path / "second", passphrase=b"another passphrase")
    with pytest.raises(BackupUnreadableError):
        restore(backup, tmp_path / "second", passphrase=None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("mine")
    with pytest.raises(RestoreTargetError):
        restore(backup, tmp_path / "full")
    assert (tmp_path / "full" / "something").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    restore(backup, tmp_path / "empty")
    assert (tmp_path / "empty" / "coordinator.db").exists()


def test_keys_are_nowhere_in_the_file_in_plain(backup: Path, tmp_path: Path) -> None:
    data = backup.read_bytes()
    for key in (tmp_path / "first" / "keys").glob("*.key.pem"):
        lines = key.read_bytes().splitlines()
        assert not [line for line in lines[1:-1] if line in data]
    assert (backup.stat().st_mode & 0o777) == 0o600


def test_backup_without_keys_restores_with_a_copy_of_them(tmp_path: Path) -> None:
    lab, installation = restoring.lab_in_installation(tmp_path / "first")
    make_backup(installation, tmp_path / "b.tar", clock=lab.clock, passphrase=None, report=restoring.quiet)
    lab.db.dispose()
    with pytest.raises(BackupUnreadableError):
        restore(tmp_path / "b.tar", tmp_path / "second")
    shutil.copytree(tmp_path / "first" / "keys", tmp_path / "kept")
    restore(tmp_path / "b.tar", tmp_path / "second", passphrase=None, keys_folder=tmp_path / "kept")
    assert (tmp_path / "second" / "keys" / "root.key.pem").exists()


async def test_backup_overwrites_nothing_and_leaves_nothing_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    lab, installation = restoring.lab_in_installation(tmp_path / "first")
    target = tmp_path / "backup.tar"
    target.write_text("an older one")
    with pytest.raises(BackupExistsError):
        restoring.back_up(lab, installation, target)
    assert target.read_text() == "an older one"
    target.unlink()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("coordinator.upkeep.archive.os.fsync", full)
        with pytest.raises(BackupDiskFullError):
            restoring.back_up(lab, installation, target)
    assert os.listdir(tmp_path) == ["first"]  # noqa: PTH208 - pathlib is refused in async functions
    lab.db.dispose()


async def test_scrubbing_while_the_backup_is_made_does_not_break_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, installation = restoring.lab_in_installation(tmp_path / "first")
    await lab.settle()
    lab.clock.advance(86_401)
    blobs = lab.ctx.blobs
    uploads = lab.db.read("u", lambda s: {u.blob_sha256 for u in s.scalars(select(restoring_upload()))})
    swept = []

    def report(line: str) -> None:
        # All rows are in the file by now, and no blob is.
        if line.startswith("uploads:") and not swept:
            swept.append(Janitor(lab.ctx)._sweep())

    monkeypatch.setattr(type(installation), "open_blobs", lambda self: blobs)
    make_backup(installation, tmp_path / "b.tar", clock=lab.clock, passphrase=restoring.PASSPHRASE, report=report)
    assert swept == [True]
    assert not any(blobs.has(sha256 or "") for sha256 in uploads)
    with open_archive(tmp_path / "b.tar") as archive:
        assert set(archive.document["scrubbed_meanwhile"]) == uploads  # type: ignore[call-overload]
    monkeypatch.undo()
    restoring.restore_under(lab, tmp_path / "b.tar", tmp_path / "second")
    # What the backup could not hold, the restored coordinator scrubs by itself.
    assert await Janitor(lab.ctx).sweep()
    assert all(row.scrubbed_at is not None for row in rounds(lab))
    lab.db.dispose()


def restoring_upload() -> Any:
    from coordinator.db.models import Upload

    return Upload


async def test_blob_that_is_missing_though_it_is_named_stops_the_backup(tmp_path: Path) -> None:
    lab, installation = restoring.lab_in_installation(tmp_path / "first")
    lab.ctx.blobs.delete(lab.run().initial_blob_sha256)
    with pytest.raises(BackupIncompleteError):
        restoring.back_up(lab, installation, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()
    lab.db.dispose()


def test_manifest_says_what_the_file_is(backup: Path) -> None:
    with open_archive(backup) as archive:
        document = json.loads(json.dumps(dict(archive.document)))
    assert document["format"] == 1
    assert document["epoch"] == 0
    assert document["has_keys"] is True
    assert {"made_at", "version", "schema_revision", "origin", "signing_spki", "audit", "members"} <= set(document)
