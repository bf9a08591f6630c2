"""Deleting a job folder while a warm trainer watches its spool."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fl_protocol.ids import SiteId
from fl_protocol.spec.context import RoundContext
from fl_protocol.testing.federation import RUN_ID
from site_agent.jobs.job_dir import DeviceChoice
from site_agent.supervision.job_desk import MANIFEST_FILE, JobDesk
from site_agent.supervision.seams import JobOptions

ROUND = RoundContext(run_id=RUN_ID, round_index=3, round_attempt=1)


@pytest.fixture
def desk(tmp_path: Path) -> JobDesk:
    options = JobOptions(
        jobs_dir=tmp_path / "jobs",
        private_states_dir=tmp_path / "private",
        base_models={},
        threads=None,
        device=DeviceChoice.AUTO,
        timeout_s=1.0,
    )
    return JobDesk(options, SiteId("alpha"))


def fill(desk: JobDesk, round_context: RoundContext = ROUND) -> Path:
    folder = desk.folder(round_context)
    folder.mkdir(parents=True)
    for name in (MANIFEST_FILE, "job.json", "payload.safetensors", "result.json"):
        (folder / name).write_bytes(b"x")
    return folder


def test_folder_deleted_is_never_an_open_job_on_the_way(desk: JobDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(desk)
    seen: list[bool] = []

    def look() -> None:
        job, result = folder / "job.json", folder / "result.json"
        seen.append(job.exists() and not result.exists())

    rename, rmtree, unlink = Path.rename, shutil.rmtree, Path.unlink
    for owner, name, honest in ((Path, "rename", rename), (shutil, "rmtree", rmtree), (Path, "unlink", unlink)):

        def watched(*arguments: object, honest: object = honest, **options: object) -> object:
            look()
            done = honest(*arguments, **options)  # type: ignore[operator]
            look()
            return done

        monkeypatch.setattr(owner, name, watched)
    desk.delete(ROUND)
    assert len(seen) >= 6
    assert not any(seen)
    assert not folder.exists()


def test_nothing_of_a_deleted_folder_is_left(desk: JobDesk, tmp_path: Path) -> None:
    fill(desk)
    desk.delete(ROUND)
    desk.delete(ROUND)
    assert not list(tmp_path.rglob("payload.safetensors"))


def test_restart_deletes_every_folder_but_those_it_takes_up(desk: JobDesk, tmp_path: Path) -> None:
    kept, other = fill(desk), fill(desk, RoundContext(run_id=RUN_ID, round_index=2, round_attempt=0))
    cut_short = tmp_path / ".leaving" / f"{RUN_ID}.1.0"
    cut_short.mkdir(parents=True)
    (cut_short / "payload.safetensors").write_bytes(b"x")
    desk.delete_all_but([ROUND])
    assert [path.parent for path in tmp_path.rglob("payload.safetensors")] == [kept]
    assert not other.exists()
