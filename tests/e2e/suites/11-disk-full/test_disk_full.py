"""The disk is full: the coordinator's blobs in the middle of the uploads, then a site's state folder when it masks.

Both lie on a small tmpfs that a ballast fills. It must be an error before it is a loss: nothing that was accepted goes
away, nobody is dropped or counted twice, the log names the cause; once there is room the run goes on by itself to the
same adapter, bit for bit, in the same attempt.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.suites.conftest import MakeFederation, Undisturbed
from tests.e2e.support.template import BIG, BIG_UPLOAD_BYTES
from tests.e2e.support.verdicts import verified_outcome
from tests.support.namespace import call
from tests.support.tools import need_root

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.system, pytest.mark.timeout(900)]

DISK_BYTES = 256 << 20
"""Room for two rounds and the 64 MiB that the coordinator leaves free: with less it opens no round, and says so."""


class Disk:
    """A tmpfs in the place of a folder, with what was in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        beside = folder.with_name(f"{folder.name}.moved")
        folder.rename(beside)
        folder.mkdir(mode=0o700)
        call("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(folder))
        shutil.copytree(beside, folder, dirs_exist_ok=True)
        self._ballast = folder / "ballast"

    def fill(self, *, but_bytes: int) -> None:
        """Leave no more room than this."""
        found = os.statvfs(self.folder)
        free = found.f_bavail * found.f_frsize
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - but_bytes)

    def free(self) -> None:
        """Make room."""
        self._ballast.unlink()

    def unmount(self) -> None:
        call("umount", "--lazy", str(self.folder))


@pytest.fixture
def on_small_disk() -> Iterator[Callable[[Path], Disk]]:
    need_root()
    disks: list[Disk] = []

    def put(folder: Path) -> Disk:
        disks.append(Disk(folder))
        return disks[-1]

    yield put
    for disk in disks:
        disk.unmount()


def test_blobs_without_room_in_the_uploads_run_goes_on_when_there_is_room(
    on_small_disk: Callable[[Path], Disk], make_federation: MakeFederation, undisturbed: Undisturbed
) -> None:
    federation = make_federation(sites=BIG.sites)
    disk = on_small_disk(federation.coordinator_dir / "blobs")
    federation.start()
    run_id = federation.start_run(BIG)
    federation.wait_until("round 0 is open", lambda: federation.round(run_id, 0))
    disk.fill(but_bytes=int(1.5 * BIG_UPLOAD_BYTES))
    federation.wait_until("a site was told that there is no room", lambda: "full" in logs_of_sites(federation))
    assert federation.exchange_state(run_id, 0) == "COLLECTING"
    disk.free()
    assert verified_outcome(federation, run_id, BIG) == undisturbed(BIG)
    assert [found["round_attempt"] for found in federation.rounds(run_id)] == [0, 0]


def test_state_folder_without_room_at_masking_site_goes_on_when_there_is_room(
    on_small_disk: Callable[[Path], Disk], make_federation: MakeFederation, undisturbed: Undisturbed
) -> None:
    federation = make_federation(sites=BIG.sites)
    disk = on_small_disk(federation.site_dir("ucsf"))
    federation.start(sites=("st-mary", "ucsf"))
    run_id = federation.start_run(BIG)
    federation.processes.start("charite")
    federation.wait_until("round 0 is open", lambda: federation.round(run_id, 0))
    federation.wait_until("charite is up", lambda: federation.participation(run_id, 0, "charite") == "TRAINING")
    # One is held back, so that nothing is masked before the disk is full.
    federation.suspend_process("charite")
    federation.wait_until("ucsf has trained", lambda: federation.participation(run_id, 0, "ucsf") == "READY")
    disk.fill(but_bytes=BIG_UPLOAD_BYTES // 4)
    federation.continue_process("charite")
    log = federation.processes["ucsf"].log_text
    federation.wait_until("ucsf says that its disk is full", lambda: "disk" in log() and "full" in log())
    assert federation.participation(run_id, 0, "ucsf") == "KEYED"
    disk.free()
    assert verified_outcome(federation, run_id, BIG) == undisturbed(BIG)
    assert [found["round_attempt"] for found in federation.rounds(run_id)] == [0, 0]
    assert federation.processes["ucsf"].n_starts == 1


def logs_of_sites(federation: object) -> str:
    return "".join(federation.processes[site].log_text() for site in BIG.sites)  # type: ignore[attr-defined]
