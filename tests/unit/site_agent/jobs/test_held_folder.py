"""What a hostile trainer puts into the jobs folder leads the agent nowhere, and neither stops nor fills it."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from site_agent.jobs.documents import JobFileInvalidError, read_document, write_file
from site_agent.jobs.held_folder import (
    FileTooLargeError,
    JobsFolderUnsafeError,
    held_folder,
    read_bounded,
    read_bounded_from,
    remove_without_following,
)
from site_agent.jobs.job_dir import JobFailure, read_result
from site_agent.jobs.progress_file import read_progress_from
from site_agent.jobs.spool_files import read_ends_from, read_heartbeat

SECRET = b"-----BEGIN PRIVATE KEY-----"


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """A jobs folder beside a key that no trainer may get at."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "signing.pem").write_bytes(SECRET)
    folder = tmp_path / "jobs"
    (folder / "run-a" / "0.0").mkdir(parents=True)
    return folder


def key_of(jobs: Path) -> Path:
    return jobs.parent / "keys" / "signing.pem"


@pytest.mark.parametrize("name", ["run-b", "run-a"])
def test_folder_behind_a_link_is_not_entered(jobs: Path, name: str) -> None:
    (jobs / "run-a" / "0.0").rmdir()
    (jobs / "run-a" / "0.0").symlink_to(jobs.parent / "keys")
    (jobs / "run-b").symlink_to(jobs.parent)
    with pytest.raises(JobsFolderUnsafeError), held_folder(jobs, name, "keys" if name == "run-b" else "0.0"):
        pass


@pytest.mark.parametrize("name", ["..", ".", "", "a/b"])
def test_name_that_leads_elsewhere_is_refused(jobs: Path, name: str) -> None:
    with pytest.raises(JobsFolderUnsafeError), held_folder(jobs, name):
        pass


def test_file_in_the_place_of_a_folder_is_refused(jobs: Path) -> None:
    (jobs / "run-c").write_bytes(b"")
    with pytest.raises(JobsFolderUnsafeError), held_folder(jobs, "run-c", "0.0", make=True):
        pass


def test_folder_that_is_swapped_for_a_link_while_it_is_held_stays_the_folder(jobs: Path) -> None:
    with held_folder(jobs, "run-a", "0.0") as folder:
        (jobs / "run-a" / "0.0").rename(jobs / "moved")
        (jobs / "run-a" / "0.0").symlink_to(jobs.parent / "keys")
        write_file(folder / "signing.pem", b"overwritten")
    assert key_of(jobs).read_bytes() == SECRET
    assert (jobs / "moved" / "signing.pem").read_bytes() == b"overwritten"


def test_link_to_a_key_is_not_read(jobs: Path) -> None:
    link = jobs / "run-a" / "0.0" / "result.json"
    link.symlink_to(key_of(jobs))
    with pytest.raises(JobsFolderUnsafeError):
        read_bounded(link, 100)
    with pytest.raises(JobFileInvalidError):
        read_result(link.parent)


def test_link_where_a_file_is_written_beside_is_not_followed(jobs: Path) -> None:
    folder = jobs / "run-a" / "0.0"
    (folder / f".layout.json.{os.getpid()}.tmp").symlink_to(key_of(jobs))
    write_file(folder / "layout.json", b"{}")
    assert key_of(jobs).read_bytes() == SECRET
    assert (folder / "layout.json").read_bytes() == b"{}"


def test_link_where_a_file_is_written_is_replaced(jobs: Path) -> None:
    target = jobs / "run-a" / "0.0" / "job.json"
    target.symlink_to(key_of(jobs))
    write_file(target, b"{}")
    assert key_of(jobs).read_bytes() == SECRET
    assert not target.is_symlink()


@pytest.mark.parametrize("make", ["pipe", "folder", "socket", "dangling link"])
@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, make: str) -> None:
    place = tmp_path / "result.json"
    match make:
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(place))
        case _:
            place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(JobFileInvalidError):
        read_result(tmp_path)
    os.mkfifo(tmp_path / "progress.jsonl")
    os.mkfifo(tmp_path / "ends.jsonl")
    with pytest.raises(JobFileInvalidError):
        read_progress_from(tmp_path, 0)
    with pytest.raises(JobFileInvalidError):
        read_ends_from(tmp_path, 0)


def test_file_without_end_is_read_up_to_its_bound(tmp_path: Path) -> None:
    huge = tmp_path / "result.json"
    with huge.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(FileTooLargeError):
        read_bounded(huge, 1000)
    with pytest.raises(JobFileInvalidError):
        read_result(tmp_path)
    assert len(read_bounded_from(huge, 1 << 30, 1000)) == 1000


def test_progress_without_a_line_is_passed_over_a_piece_at_a_time(tmp_path: Path) -> None:
    line = b'{"state":"training","step":1,"steps":2,"at":"now"}\n'
    (tmp_path / "progress.jsonl").write_bytes(b"x" * (5 << 20) + b"\n" + line)
    offset, told = 0, []
    for _ in range(8):
        lines, offset = read_progress_from(tmp_path, offset)
        told += lines
    assert [line.step for line in told] == [1]
    assert offset == (5 << 20) + 1 + len(line)


@pytest.mark.parametrize("step", [-1, 2**31, 10**30])
def test_step_beyond_reason_is_no_progress(tmp_path: Path, step: int) -> None:
    (tmp_path / "progress.jsonl").write_text(f'{{"state":"training","step":{step},"steps":9,"at":"now"}}\n')
    assert read_progress_from(tmp_path, 0)[0] == ()


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 100_000, b'{"status":NaN}', b"1" * 100_000, b"\xff\xfe", b""]
)
def test_document_that_is_made_to_break_a_reader_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "job.json").write_bytes(content)
    with pytest.raises(JobFileInvalidError):
        read_document(tmp_path / "job.json")


def test_what_a_trainer_says_cannot_steer_a_terminal_or_break_a_log(tmp_path: Path) -> None:
    text = "\\u001b[2Jgone\\nlevel=info all=well\\u0000" + "x" * 5000
    (tmp_path / "result.json").write_text(
        f'{{"status":"failed","code":"c","message":"{text}","facts":{{"deep":{{"a":1}},"n":1}}}}'
    )
    failure = read_result(tmp_path)
    assert isinstance(failure, JobFailure)
    assert failure.message.isprintable()
    assert len(failure.message) == 2000
    assert failure.facts == {"n": 1}


@pytest.mark.parametrize("count", ["-1", "1e3", "9007199254740992", "true"])
def test_count_that_is_none_is_refused(tmp_path: Path, count: str) -> None:
    (tmp_path / "result.json").write_text(
        f'{{"status":"succeeded","records":{count},"patients":1,"held_out_records":0,"seconds":1,'
        '"peak_memory_bytes":1,"device":"cpu","precision":"float32","sha256":"ab","metrics":{}}'
    )
    with pytest.raises(JobFileInvalidError):
        read_result(tmp_path)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400, "-1" + "0" * 400])
@pytest.mark.parametrize("key", ["seconds", "metrics"])
def test_number_that_no_float_holds_is_refused(tmp_path: Path, key: str, number: str) -> None:
    figures = {"seconds": "1", "metrics": "{}", key: number if key == "seconds" else f'{{"loss":{number}}}'}
    (tmp_path / "result.json").write_text(
        f'{{"status":"succeeded","records":1,"patients":1,"held_out_records":0,"seconds":{figures["seconds"]},'
        f'"peak_memory_bytes":1,"device":"cpu","precision":"float32","sha256":"ab","metrics":{figures["metrics"]}}}'
    )
    with pytest.raises(JobFileInvalidError):
        read_result(tmp_path)


@pytest.mark.parametrize("number", ["1e999", "1" + "0" * 400])
def test_progress_whose_loss_no_float_holds_is_left_out(tmp_path: Path, number: str) -> None:
    line = '{"state":"training","step":1,"steps":9,"at":"now","loss":'
    (tmp_path / "progress.jsonl").write_text(f"{line}{number}}}\n{line}2.5}}\n")
    assert [found.loss for found in read_progress_from(tmp_path, 0)[0]] == [2.5]


@pytest.mark.parametrize(
    "content", ["[]", '{"life":"a"}', '{"life":"a","n_beats":1,"jobs":[1]}', '{"life":1,"n_beats":1,"jobs":[]}']
)
def test_heartbeat_that_is_none_is_no_trainer(tmp_path: Path, content: str) -> None:
    (tmp_path / "trainer.json").write_text(content)
    assert read_heartbeat(tmp_path) is None


def test_deleting_removes_links_and_not_what_they_lead_to(jobs: Path) -> None:
    (jobs / "run-a" / "0.0" / "deep").mkdir()
    (jobs / "run-a" / "0.0" / "deep" / "keys").symlink_to(jobs.parent / "keys")
    remove_without_following(jobs / "run-a")
    (jobs / "run-b").symlink_to(jobs.parent / "keys")
    remove_without_following(jobs / "run-b")
    remove_without_following(jobs / "never-there")
    assert list(jobs.iterdir()) == []
    assert key_of(jobs).read_bytes() == SECRET


def modes_of(folder: Path) -> tuple[int, int]:
    with held_folder(folder, "run-a", "0.0", make=True) as made:
        write_file(made / "job.json", b"{}")
    job = folder / "run-a" / "0.0"
    return stat.S_IMODE(job.stat().st_mode), stat.S_IMODE((job / "job.json").stat().st_mode)


@pytest.mark.parametrize(
    ("mode", "umask", "expected"),
    [
        (0o700, 0o022, (0o700, 0o600)),
        (0o755, 0o000, (0o700, 0o600)),
        (0o770, 0o000, (0o700, 0o600)),
        (0o2770, 0o077, (0o2770, 0o660)),
    ],
)
def test_jobs_folder_is_shared_by_a_group_only_where_it_says_so(
    tmp_path: Path, mode: int, umask: int, expected: tuple[int, int]
) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    folder.chmod(mode)
    before = os.umask(umask)
    try:
        assert modes_of(folder) == expected
    finally:
        os.umask(before)
