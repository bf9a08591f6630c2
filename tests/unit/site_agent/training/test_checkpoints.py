from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from site_agent.jobs import documents
from site_agent.jobs.job_dir import CHECKPOINT_FILE, CHECKPOINT_FOLDER
from site_agent.training.checkpoints import Checkpoint, CheckpointStore
from site_agent.training.exchange.fedavg_lora import EvaluationSums
from site_agent.training.local.steps import StepsState, TrainingSums

pytestmark = pytest.mark.training

EVALUATED = EvaluationSums(loss_sum=0.1 + 0.2, n_tokens=41, n_records=8)
JOB = "ab" * 32


def checkpoint(step: int = 3) -> Checkpoint:
    tensors = {
        "adapter/a.weight": np.array([[0.1, -0.0], [1e-30, 3.0]], dtype=np.float32),
        "step/a.weight": np.array(float(step), dtype=np.float32),
        "generator/cpu": np.arange(256, dtype=np.uint8),
    }
    trained = StepsState(step=step, sums=TrainingSums(loss_sum=1 / 3, n_tokens=77), tensors=tensors)
    return Checkpoint(evaluated=EVALUATED, is_evaluated=True, trained=trained)


class HandClock:
    """Tells what it is set to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def store(folder: Path, **changes: object) -> CheckpointStore:
    options: dict[str, object] = {"belongs_to": JOB, "every_s": 0.0, **changes}
    return CheckpointStore(folder, **options)  # type: ignore[arg-type]


def file_in(folder: Path) -> Path:
    return folder / CHECKPOINT_FOLDER / CHECKPOINT_FILE


def test_checkpoint_written_and_read_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    store(tmp_path).offer(checkpoint)
    found = store(tmp_path).newest()
    assert found is not None
    assert found.trained is not None
    assert (found.evaluated, found.is_evaluated) == (EVALUATED, True)
    assert (found.trained.step, found.trained.sums) == (3, TrainingSums(loss_sum=1 / 3, n_tokens=77))
    expected = checkpoint().trained
    assert expected is not None
    assert found.trained.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert found.trained.tensors[name].dtype == tensor.dtype
        assert found.trained.tensors[name].shape == tensor.shape
        assert found.trained.tensors[name].tobytes() == tensor.tobytes()


def test_checkpoint_within_an_evaluation_has_no_training(tmp_path: Path) -> None:
    store(tmp_path).offer(lambda: Checkpoint(evaluated=EVALUATED, is_evaluated=False))
    assert store(tmp_path).newest() == Checkpoint(evaluated=EVALUATED, is_evaluated=False, trained=None)


def test_checkpoint_is_an_ordinary_safetensors_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store(tmp_path).offer(checkpoint)
    finally:
        os.umask(before)
    assert file_in(tmp_path).parent.stat().st_mode & 0o777 == 0o700
    assert file_in(tmp_path).stat().st_mode & 0o777 == 0o600
    tensors = load_file(file_in(tmp_path))
    np.testing.assert_array_equal(tensors["state/adapter/a.weight"], np.array([[0.1, 0], [1e-30, 3]], np.float32))


def test_newest_replaces_the_one_before(tmp_path: Path) -> None:
    written = store(tmp_path)
    for step in (1, 2, 9):
        written.offer(lambda step=step: checkpoint(step))
    found = store(tmp_path).newest()
    assert found is not None
    assert found.trained is not None
    assert found.trained.step == 9
    assert list(file_in(tmp_path).parent.iterdir()) == [file_in(tmp_path)]


def test_checkpoint_of_another_job_is_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store(tmp_path).offer(checkpoint)
    assert store(tmp_path, belongs_to="cd" * 32).newest() is None
    assert not (tmp_path / CHECKPOINT_FOLDER).exists()
    assert "another job" in caplog.text


def _cut(data: bytes) -> bytes:
    return data[:-1]


def _flip(data: bytes) -> bytes:
    return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]


@pytest.mark.parametrize("damage", [_cut, _flip, lambda _: b"", lambda _: b"\x80\x04pickle"])
def test_checkpoint_that_is_damaged_is_deleted(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    store(tmp_path).offer(checkpoint)
    file_in(tmp_path).write_bytes(damage(file_in(tmp_path).read_bytes()))
    assert store(tmp_path).newest() is None
    assert not (tmp_path / CHECKPOINT_FOLDER).exists()
    assert "damaged" in caplog.text


def test_half_written_file_beside_the_newest_is_cleared_away(tmp_path: Path) -> None:
    store(tmp_path).offer(checkpoint)
    beside = file_in(tmp_path).with_name(f".{CHECKPOINT_FILE}.4711.tmp")
    beside.write_bytes(b"half")
    assert store(tmp_path).newest() is not None
    assert not beside.exists()


def test_half_written_first_checkpoint_is_none(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT_FOLDER).mkdir()
    file_in(tmp_path).with_name(f".{CHECKPOINT_FILE}.4711.tmp").write_bytes(b"half")
    assert store(tmp_path).newest() is None
    assert not (tmp_path / CHECKPOINT_FOLDER).exists()


def test_full_disk_is_a_warning_and_the_older_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written = store(tmp_path)
    written.offer(lambda: checkpoint(1))

    def fail(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(documents.os, "fsync", fail)
        written.offer(lambda: checkpoint(2))
    assert "No space left on device" in caplog.text
    assert list(file_in(tmp_path).parent.iterdir()) == [file_in(tmp_path)]
    found = store(tmp_path).newest()
    assert found is not None
    assert found.trained is not None
    assert found.trained.step == 1


def test_first_checkpoint_comes_after_two_intervals_and_the_next_after_one(tmp_path: Path) -> None:
    clock, made = HandClock(), []

    def make() -> Checkpoint:
        made.append(clock.now - 1000)
        return checkpoint()

    written = store(tmp_path, every_s=30.0, monotonic=clock)
    for second in range(200):
        clock.now = 1000.0 + second
        written.offer(make)
    assert made == [60, 90, 120, 150, 180]


def test_checkpoint_that_takes_long_is_written_seldom(tmp_path: Path) -> None:
    clock, made = HandClock(), []

    def make_slowly() -> Checkpoint:
        made.append(clock.now - 1000)
        clock.now += 10
        return checkpoint()

    written = store(tmp_path, every_s=30.0, monotonic=clock)
    while clock.now < 1500:
        written.offer(make_slowly)
        clock.now += 1
    # Ten seconds each: not more than a twentieth of the time, so the next one is due 200 s after the last ended.
    assert made == [60, 270, 480]
