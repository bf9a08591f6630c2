"""The journal: what is written comes back byte for byte, whatever moment the power goes; what is closed never does."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from fl_protocol.codec.chunks import chunk_root
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.ids import SiteId
from fl_protocol.secagg import coordinator_role
from fl_protocol.secagg.site_role import SitePhase, SiteRole
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.round_spec import RoundManifest
from fl_protocol.testing.entropy import SeededEntropy
from fl_protocol.testing.federation import RUN_ID, Federation, small_layout
from site_agent.errors import JournalDamagedError
from site_agent.session.events import Step
from site_agent.state.journal import KEY_FILE, RECORD_FILE, SPOOL_FILE, ExchangeRecord, Journal


def context(attempt: int = 0) -> ExchangeContext:
    return ExchangeContext(run_id=RUN_ID, round_index=0, round_attempt=0, exchange_index=0, exchange_attempt=attempt)


def record(*, message: bytes = b"m1", snapshot: bytes = b"secret", attempt: int = 0) -> ExchangeRecord:
    taken = ((Step.ADVERTISE, ""), (Step.SHARE, "ab" * 32))
    return ExchangeRecord(context=context(attempt), taken=taken, message=message, snapshot=snapshot)


def journal(folder: Path) -> Journal:
    return Journal(folder, entropy=SeededEntropy(str(folder)))


def test_record_written_is_read_back_by_another_process(tmp_path: Path) -> None:
    journal(tmp_path).write(record())
    assert journal(tmp_path).read(context()) == record()


def test_record_of_an_exchange_never_entered_is_none(tmp_path: Path) -> None:
    assert journal(tmp_path).read(context()) is None


def test_files_are_private_and_hold_no_snapshot(tmp_path: Path) -> None:
    journal(tmp_path).write(record(snapshot=b"the mask key"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {KEY_FILE, RECORD_FILE}
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"the mask key" not in path.read_bytes()


def test_exchange_closed_leaves_nothing_and_an_old_copy_opens_no_more(tmp_path: Path) -> None:
    journal(tmp_path).write(record())
    folder = next(tmp_path.rglob(RECORD_FILE)).parent
    saved = (folder / RECORD_FILE).read_bytes()
    journal(tmp_path).write_spool(context(), [b"masked"])
    journal(tmp_path).close(context())
    assert not folder.exists()
    folder.mkdir()
    (folder / RECORD_FILE).write_bytes(saved)
    assert journal(tmp_path).read(context()) is None
    with pytest.raises(JournalDamagedError):
        journal(tmp_path).write(record())


def test_exchange_closed_twice_does_nothing(tmp_path: Path) -> None:
    journal(tmp_path).write(record())
    journal(tmp_path).close(context())
    journal(tmp_path).close(context())
    assert journal(tmp_path).open_contexts() == ()


def test_record_altered_is_damaged_not_guessed(tmp_path: Path) -> None:
    journal(tmp_path).write(record())
    path = next(tmp_path.rglob(RECORD_FILE))
    sealed = bytearray(path.read_bytes())
    sealed[-1] ^= 1
    path.write_bytes(sealed)
    with pytest.raises(JournalDamagedError):
        journal(tmp_path).read(context())


def test_record_moved_to_another_exchange_does_not_open(tmp_path: Path) -> None:
    journal(tmp_path).write(record())
    journal(tmp_path).write(record(attempt=1))
    first, second = (next(tmp_path.rglob(f"0.0.0.{attempt}")) for attempt in (0, 1))
    shutil.copy(first / KEY_FILE, second / KEY_FILE)
    shutil.copy(first / RECORD_FILE, second / RECORD_FILE)
    with pytest.raises(JournalDamagedError):
        journal(tmp_path).read(context(1))


def test_write_cut_short_leaves_the_record_before_it(tmp_path: Path) -> None:
    journal(tmp_path).write(record(message=b"before"))
    folder = next(tmp_path.rglob(RECORD_FILE)).parent
    # What a power cut leaves: the new file beside, half written, not renamed yet.
    (folder / f".{RECORD_FILE}.new").write_bytes(b"half")
    assert journal(tmp_path).read(context()) == record(message=b"before")
    journal(tmp_path).write(record(message=b"after"))
    assert journal(tmp_path).read(context()) == record(message=b"after")


def test_key_erased_but_not_removed_reads_as_closed(tmp_path: Path) -> None:
    journal(tmp_path).write(record())
    path = next(tmp_path.rglob(KEY_FILE))
    path.write_bytes(bytes(32))
    assert journal(tmp_path).read(context()) is None


class CrashingSite:
    """A site that writes to a journal before it sends, and keeps a copy of the folder after every write."""

    def __init__(self, folder: Path, federation: Federation, site: SiteId) -> None:
        self.journal = journal(folder / "journal")
        self.folder = folder / "journal"
        self.federation = federation
        self.site = site
        self.copies: list[tuple[Path, bytes]] = []

    def keep(self, role: SiteRole, taken: tuple[tuple[Step, str], ...]) -> bytes:
        message = role.last_message
        assert message is not None
        self.journal.write(ExchangeRecord(context=context(), taken=taken, message=message, snapshot=role.snapshot()))
        copy = self.folder.with_name(f"copy-{len(self.copies)}")
        shutil.copytree(self.folder, copy)
        self.copies.append((copy, message))
        return message

    def restore(self, copy: Path) -> tuple[ExchangeRecord, SiteRole]:
        found = Journal(copy, entropy=SeededEntropy("another process")).read(context())
        assert found is not None
        entropy = SeededEntropy("another boot")
        return found, SiteRole.restore(found.snapshot, signer=self.federation.signers[self.site], entropy=entropy)


def test_exchange_cut_between_any_two_writes_resends_identical_bytes(tmp_path: Path) -> None:
    sites = tuple(SiteId(name) for name in ("alpha", "beta", "gamma"))
    federation = Federation(sites, small_layout())
    opened = federation.open_exchange()
    assert RoundManifest.decode(opened.manifest.body).exchange(0, 0) == context()
    roles = {site: federation.open_role(site, opened) for site in sites}
    crashing = CrashingSite(tmp_path, federation, sites[1])
    taken: tuple[tuple[Step, str], ...] = ()

    def each(act: object, asked: Step) -> dict[SiteId, bytes]:
        nonlocal taken
        sent: dict[SiteId, bytes] = {}
        for site, role in roles.items():
            sent[site] = act(role, site)  # type: ignore[operator]
            if site == crashing.site:
                taken = (*taken, (asked, asked.value))
                assert crashing.keep(role, taken) == sent[site]
                # Every earlier and this copy: the process died right after the write, before or after the send.
                for copy, message in crashing.copies:
                    found, restored = crashing.restore(copy)
                    assert found.message == message == restored.last_message
                # The exchange goes on with the restored role.
                roles[site] = crashing.restore(crashing.copies[-1][0])[1]
        return sent

    m1s = each(lambda role, _: role.advertise(), Step.ADVERTISE)
    cohort = coordinator_role.freeze_cohort(opened, m1s)
    m2 = coordinator_role.make_m2(cohort)
    m3s = each(lambda role, _: role.share(m2), Step.SHARE)
    sharers = coordinator_role.freeze_sharers(cohort, m3s)
    uploads: dict[SiteId, RingVector] = {}

    def mask(role: SiteRole, site: SiteId) -> bytes:
        role.accept_shares(coordinator_role.make_m4(sharers, site))
        upload = role.mask(RingVector.zeros(5, 2))
        uploads[site] = upload.vector
        if site == crashing.site:
            crashing.journal.write_spool(context(), upload.vector.buffers())
        return upload.header

    m5s = each(mask, Step.MASK)
    copy, header = crashing.copies[-1]
    spooled = Journal(copy, entropy=SeededEntropy("x")).spool_path(context()).read_bytes()
    said = coordinator_role.check_m5(sharers, header, sender=crashing.site)
    assert chunk_root([spooled[i : i + 16] for i in range(0, len(spooled), 16)]) == said.chunk_root
    survivors = coordinator_role.freeze_survivors(sharers, m5s)
    m7s = each(lambda role, _: role.confirm(coordinator_role.make_m6(survivors)), Step.CONFIRM)
    m9s = each(lambda role, _: role.reveal(coordinator_role.make_m8(survivors, m7s)), Step.REVEAL)
    assert coordinator_role.recover_mask_terms(survivors, m9s)
    found, restored = crashing.restore(crashing.copies[-1][0])
    assert restored.phase is SitePhase.REVEALED
    assert [asked for asked, _ in found.taken] == list(Step)


def test_spool_written_before_its_record_is_not_yet_a_step(tmp_path: Path) -> None:
    """The crash between the two: no byte has left, and the record still says that nothing was masked."""
    journal(tmp_path).write(record())
    journal(tmp_path).write_spool(context(), [b"masked"])
    found = journal(tmp_path).read(context())
    assert found is not None
    assert found.last_step is Step.SHARE
    assert next(tmp_path.rglob(SPOOL_FILE)).read_bytes() == b"masked"


def test_open_contexts_are_sorted_and_ignore_foreign_folders(tmp_path: Path) -> None:
    for attempt in (2, 0, 1):
        journal(tmp_path).write(record(attempt=attempt))
    (tmp_path / "lost+found").mkdir()
    (tmp_path / RUN_ID / "notes").mkdir()
    assert journal(tmp_path).open_contexts() == (context(0), context(1), context(2))
