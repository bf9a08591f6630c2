"""Deleting a job folder while a warm trainer watches its spool."""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fl_protocol.ids import SiteId
from fl_protocol.spec.context import RoundContext
from fl_protocol.testing.federation import RUN_ID
from site_agent.jobs.held_folder import JobsFolderUnsafeError
from site_agent.jobs.job_dir import DeviceChoice
from site_agent.jobs.spool import open_jobs_below
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
    cut_short = tmp_path / "jobs" / ".leaving" / f"{RUN_ID}.1.0"
    cut_short.mkdir(parents=True)
    (cut_short / "payload.safetensors").write_bytes(b"x")
    desk.delete_all_but([ROUND])
    assert [path.parent for path in tmp_path.rglob("payload.safetensors")] == [kept]
    assert not other.exists()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """What a hostile trainer would have the agent overwrite, move or delete."""
    folder = tmp_path / "keys"
    (folder / "1.0").mkdir(parents=True)
    for name in ("signing.pem", "private.safetensors", "job.json", f"1.0/{MANIFEST_FILE}"):
        (folder / name).write_bytes(b"secret")
    return folder


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("place", ["job folder", "run folder", "leaving folder", "folder in the job folder"])
def test_link_that_a_trainer_left_is_deleted_and_what_it_leads_to_is_not(
    desk: JobDesk, tmp_path: Path, keys: Path, place: str
) -> None:
    before, folder = snapshot(keys), desk.folder(ROUND)
    match place:
        case "job folder":
            folder.parent.mkdir(parents=True)
            folder.symlink_to(keys)
        case "run folder":
            (tmp_path / "jobs").mkdir()
            folder.parent.symlink_to(keys)
        case "leaving folder":
            fill(desk)
            (tmp_path / "jobs" / ".leaving").symlink_to(keys)
        case _:
            fill(desk)
            (folder / "checkpoint").symlink_to(keys)
    desk.delete(ROUND)
    desk.delete_all_but([])
    assert snapshot(keys) == before
    assert not folder.exists()
    assert not folder.is_symlink()


def test_restart_does_not_follow_links_in_the_jobs_folder(desk: JobDesk, tmp_path: Path, keys: Path) -> None:
    before = snapshot(keys)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "run-evil").symlink_to(keys)
    desk.delete_all_but([])
    desk.forget_all_but([])
    assert snapshot(keys) == before


def test_manifest_and_payload_behind_links_are_none(desk: JobDesk, keys: Path) -> None:
    folder = desk.folder(ROUND)
    folder.mkdir(parents=True)
    (folder / MANIFEST_FILE).symlink_to(keys / "signing.pem")
    assert desk.read_manifest(ROUND) is None
    shutil.rmtree(folder)
    folder.symlink_to(keys)
    assert desk.read_manifest(ROUND) is None
    assert not desk.has_payload(ROUND)


@pytest.mark.parametrize("place", ["site", "job folder", "layout.json as a folder"])
def test_folder_that_a_trainer_booby_trapped_is_not_filled(desk: JobDesk, keys: Path, place: str) -> None:
    before, folder = snapshot(keys), desk.folder(ROUND)
    folder.parent.mkdir(parents=True)
    match place:
        case "job folder":
            folder.symlink_to(keys)
        case "site":
            folder.mkdir()
            (folder / "site").symlink_to(keys)
        case _:
            (folder / "layout.json" / "full").mkdir(parents=True)
    admitted = SimpleNamespace(
        round=ROUND, signed=SimpleNamespace(encode=lambda: b"M0"), run=SimpleNamespace(layout_json=b"{}")
    )
    with pytest.raises(JobsFolderUnsafeError):
        desk._fill(admitted, SimpleNamespace(iter_bytes=lambda: iter([b"state"])), None)  # type: ignore[arg-type]
    assert snapshot(keys) == before


NOBODY = 65534


def passes_without_privileges(folder: Path, work: Callable[[], object]) -> bool:
    """Whether the work passes in ``folder`` in a process to which modes and owners of files mean something."""
    child = os.fork()
    if child == 0:
        # The folders above may be closed to it: it is there already.
        os.chdir(folder)
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        try:
            work()
        except BaseException:  # noqa: BLE001 - whatever it is, the parent has to hear that it was
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("place", [("run",), ("run", "round"), (".leaving",)])
@pytest.mark.parametrize("mode", [0o000, 0o744])
def test_folder_that_a_trainer_keeps_to_itself_stops_neither_the_round_s_end_nor_the_agent_s_start(
    tmp_path: Path, place: tuple[str, ...], mode: int
) -> None:
    options = JobOptions(
        jobs_dir=Path("jobs"),
        private_states_dir=Path("private"),
        base_models={},
        threads=None,
        device=DeviceChoice.AUTO,
        timeout_s=1.0,
    )
    desk, other = JobDesk(options, SiteId("alpha")), replace(ROUND, round_attempt=2)
    names = {"run": RUN_ID, "round": desk.folder(ROUND).name}
    jobs = tmp_path / "jobs"
    for folder in (jobs, jobs / RUN_ID, jobs / RUN_ID / desk.folder(other).name):
        folder.mkdir(exist_ok=True)
    is_of_the_run = place == ("run",)
    closed = jobs.joinpath(*(names.get(name, name) for name in place))
    if not is_of_the_run:
        closed.mkdir()
    (closed / "result.json").write_text("{}")
    tmp_path.chmod(0o755)
    if os.geteuid() == 0:
        for folder in {jobs, jobs / RUN_ID, jobs / RUN_ID / desk.folder(other).name} - {closed}:
            os.chown(folder, NOBODY, NOBODY)
    closed.chmod(mode)

    def end_and_start_again() -> None:
        assert not desk.has_payload(ROUND)
        assert desk.read_manifest(ROUND) is None
        desk.delete(ROUND)
        desk.delete_all_but([])
        desk.forget_all_but([])
        assert open_jobs_below(options.jobs_dir) == []

    assert passes_without_privileges(tmp_path, end_and_start_again)
    closed.chmod(0o755)
    # What is the agent's own goes all the same.
    assert is_of_the_run or not (jobs / RUN_ID / desk.folder(other).name).exists()


def test_link_in_the_place_of_a_run_is_no_open_job(tmp_path: Path, keys: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / RUN_ID).symlink_to(keys)
    assert open_jobs_below(tmp_path / "jobs") == []
