"""A trainer that dies, at every place where it can, and the one after it: the same payload to the last bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_protocol.folds.public_state import PublicState
from fl_protocol.tensors.safetensors_io import bytes_from_tensors
from site_agent.jobs import documents
from site_agent.jobs.job_dir import (
    CHECKPOINT_FILE,
    CHECKPOINT_FOLDER,
    NEXT_PRIVATE_FILE,
    PAYLOAD_FILE,
    PRIVATE_FILE,
    RESULT_FILE,
    SITE_FOLDER,
    JobFailure,
    JobKind,
    JobResult,
    ProgressState,
    read_job,
    read_progress,
)
from site_agent.training import closing, outcomes
from site_agent.training.progress import ProgressReporter
from site_agent.training.recipe import CHECKPOINT_EVERY_S
from site_agent.training.shelf import ModelShelf
from tests.support.training_jobs import bound_spec, make_job, reopen_job

pytestmark = pytest.mark.training

STEPS = 5
HARD = {
    "adapter": {"dropout": 0.25},
    "local": {"steps": STEPS, "batch_size": 2, "accumulation": 2, "warmup_steps": 2},
    "evaluation": {"max_records": 20, "holdout_fraction": 0.5},
}
"""What makes resuming hard: dropout, accumulation, a schedule, and an evaluation of several batches."""


class TrainerDiedHereError(BaseException):
    """The process is gone: no clean-up of the trainer's own runs after this."""


@pytest.fixture
def tiny_job(tmp_path: Path, tiny_model: Path, records: Path) -> Path:
    make_job(tmp_path / "job", model_folder=tiny_model, records=records, **HARD)
    return tmp_path / "job"


def close(job_dir: Path, *, checkpoint_every_s: float = 0.0) -> JobResult:
    """As a fresh trainer does it, with a checkpoint after every batch and step."""
    outcome = closing.close_job(job_dir, shelf=ModelShelf(), checkpoint_every_s=checkpoint_every_s)
    assert isinstance(outcome, JobResult), outcome
    return outcome


def die_at_report(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    report = ProgressReporter.report
    seen = [0]

    def dying(self: ProgressReporter, *arguments: object, **facts: object) -> None:
        seen[0] += 1
        if seen[0] == number:
            raise TrainerDiedHereError
        report(self, *arguments, **facts)  # type: ignore[arg-type]

    monkeypatch.setattr(ProgressReporter, "report", dying)


def live_until_report(
    monkeypatch: pytest.MonkeyPatch, number: int, job_dir: Path, *, checkpoint_every_s: float = 0.0
) -> None:
    with monkeypatch.context() as patched:
        die_at_report(patched, number)
        with pytest.raises(TrainerDiedHereError):
            close(job_dir, checkpoint_every_s=checkpoint_every_s)


@pytest.fixture
def undisturbed(tmp_path: Path, tiny_model: Path, records: Path) -> tuple[bytes, JobResult, int]:
    make_job(tmp_path / "undisturbed", model_folder=tiny_model, records=records, **HARD)
    outcome = closing.close_job(tmp_path / "undisturbed", shelf=ModelShelf())
    assert isinstance(outcome, JobResult)
    n_reports = len(read_progress(tmp_path / "undisturbed"))
    return (tmp_path / "undisturbed" / PAYLOAD_FILE).read_bytes(), outcome, n_reports


def test_trainer_that_dies_at_any_report_gives_the_same_payload(
    tiny_job: Path, undisturbed: tuple[bytes, JobResult, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    payload, result, n_reports = undisturbed
    assert n_reports > STEPS + 5
    for number in range(1, n_reports + 1):
        live_until_report(monkeypatch, number, tiny_job)
        assert not (tiny_job / RESULT_FILE).exists()
        resumed = close(tiny_job)
        assert (tiny_job / PAYLOAD_FILE).read_bytes() == payload
        assert resumed.metrics == result.metrics
        (tiny_job / RESULT_FILE).unlink()


def test_trainer_that_dies_in_each_life_right_after_one_step_gets_there(
    tiny_job: Path, undisturbed: tuple[bytes, JobResult, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two reports of loading, one that it goes on, and then each life dies telling of its first batch or step.
    n_deaths = 0
    while not (tiny_job / RESULT_FILE).exists():
        with monkeypatch.context() as patched:
            die_at_report(patched, 4)
            try:
                close(tiny_job)
            except TrainerDiedHereError:
                n_deaths += 1
        assert n_deaths < 50
    assert n_deaths >= STEPS
    assert (tiny_job / PAYLOAD_FILE).read_bytes() == undisturbed[0]


@pytest.mark.parametrize("number", [1, 2, 4, 7])
def test_trainer_that_dies_while_writing_a_checkpoint_gives_the_same_payload(
    tiny_job: Path, undisturbed: tuple[bytes, JobResult, int], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    seen, rename = [0], Path.replace

    def dying(self: Path, target: Path) -> Path:
        seen[0] += self.parent.name == CHECKPOINT_FOLDER
        if seen[0] == number:
            raise TrainerDiedHereError
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(documents.Path, "replace", dying)
        with pytest.raises(TrainerDiedHereError):
            close(tiny_job)
    left = {path.name for path in (tiny_job / CHECKPOINT_FOLDER).iterdir()}
    assert any(name.endswith(".tmp") for name in left)
    assert (CHECKPOINT_FILE in left) is (number > 1)
    close(tiny_job)
    assert (tiny_job / PAYLOAD_FILE).read_bytes() == undisturbed[0]


def test_trainer_that_dies_before_its_result_trains_no_step_again(
    tiny_job: Path, undisturbed: tuple[bytes, JobResult, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*_: object) -> None:
        raise TrainerDiedHereError

    with monkeypatch.context() as patched:
        patched.setattr(outcomes, "write_result", dying)
        with pytest.raises(TrainerDiedHereError):
            close(tiny_job)
    before = len(read_progress(tiny_job))
    close(tiny_job)
    assert (tiny_job / PAYLOAD_FILE).read_bytes() == undisturbed[0]
    after = [line for line in read_progress(tiny_job)[before:] if line.state is ProgressState.TRAINING]
    assert [(line.step, line.is_resumed) for line in after] == [(STEPS, True)]


def test_progress_says_at_which_step_a_job_was_resumed(tiny_job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two of loading, the evaluation's beginning and its three batches, training's beginning: dies at step 3.
    live_until_report(monkeypatch, 10, tiny_job)
    close(tiny_job)
    steps = [(line.step, line.is_resumed) for line in read_progress(tiny_job) if line.state is ProgressState.TRAINING]
    assert steps == [(0, False), (1, False), (2, False), (3, True), (4, False), (5, False)]


def test_job_that_is_closed_has_no_checkpoint(tiny_job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live_until_report(monkeypatch, 9, tiny_job)
    assert (tiny_job / CHECKPOINT_FOLDER / CHECKPOINT_FILE).exists()
    close(tiny_job)
    assert not (tiny_job / CHECKPOINT_FOLDER).exists()


@pytest.mark.parametrize("change", ["seed", "data", "attempt"])
def test_checkpoint_of_another_seed_of_other_data_or_of_another_attempt_is_not_used(
    tiny_job: Path, records: Path, monkeypatch: pytest.MonkeyPatch, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    live_until_report(monkeypatch, 9, tiny_job)
    match change:
        case "seed":
            reopen_job(tiny_job, read_job(tiny_job), seed=12)
        case "attempt":
            reopen_job(tiny_job, read_job(tiny_job), round_attempt=1)
        case "data":
            records.write_text("".join(records.read_text().splitlines(keepends=True)[::-1]))
    before = len(read_progress(tiny_job))
    close(tiny_job)
    assert "checkpoint discarded" in caplog.text
    assert not any(line.is_resumed for line in read_progress(tiny_job))
    trained = [line.step for line in read_progress(tiny_job)[before:] if line.state is ProgressState.TRAINING]
    assert trained == list(range(STEPS + 1))


def test_job_whose_data_is_not_what_was_registered_fails_before_it_trains(tiny_job: Path) -> None:
    job = read_job(tiny_job)
    reopen_job(tiny_job, job, data=replace(job.data, sha256="00" * 32))
    outcome = closing.close_job(tiny_job, shelf=ModelShelf())
    assert isinstance(outcome, JobFailure)
    assert outcome.code == "dataset-changed"
    assert {line.state for line in read_progress(tiny_job)} == {ProgressState.LOADING}


def test_evaluation_alone_is_resumed_as_well(
    tmp_path: Path, tiny_model: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "plain", tmp_path / "killed"]
    for folder in folders:
        make_job(folder, model_folder=tiny_model, records=records, kind=JobKind.EVALUATE, **HARD)
    close(folders[0])
    live_until_report(monkeypatch, 5, folders[1])
    close(folders[1])
    lines = read_progress(folders[1])
    assert [line.step for line in lines if line.is_resumed] == [16]
    assert len({(folder / PAYLOAD_FILE).read_bytes() for folder in folders}) == 1


@pytest.mark.parametrize("local", [{"rule": "fedprox", "mu": 3.0}, {"rule": "scaffold", "optimizer": "sgd"}])
def test_trainer_under_another_local_rule_that_dies_gives_the_same_payload_and_private_state(
    tmp_path: Path,
    tiny_model: Path,
    records: Path,
    monkeypatch: pytest.MonkeyPatch,
    local: dict[str, object],
) -> None:
    sections = {**HARD, "local": {**HARD["local"], **local}}
    _, layout, _ = bound_spec(tiny_model, **sections)
    rng = np.random.default_rng(9)

    def drawn() -> np.ndarray:
        return rng.normal(0, 0.05, layout.n_parameters).astype(np.float32)

    control = {f"control.{name}": array for name, array in layout.unflatten(drawn()).items()}
    state = PublicState(version=1, adapter=layout.unflatten(drawn()), server=control)
    own = bytes_from_tensors({"own_control": drawn()})

    def make(folder: Path, private: bytes) -> None:
        make_job(folder, model_folder=tiny_model, records=records, round_index=1, state=state, **sections)
        (folder / SITE_FOLDER).mkdir()
        (folder / SITE_FOLDER / PRIVATE_FILE).write_bytes(private)

    def results(folder: Path) -> tuple[bytes, bytes | None]:
        after = folder / SITE_FOLDER / NEXT_PRIVATE_FILE
        return (folder / PAYLOAD_FILE).read_bytes(), after.read_bytes() if after.exists() else None

    undisturbed, dying, other = tmp_path / "undisturbed", tmp_path / "dying", tmp_path / "other"
    make(undisturbed, own)
    close(undisturbed)
    assert (results(undisturbed)[1] is not None) is (local["rule"] == "scaffold")
    make(dying, own)
    live_until_report(monkeypatch, 9, dying)
    close(dying)
    assert any(line.is_resumed for line in read_progress(dying))
    assert results(dying) == results(undisturbed)
    # What the site kept is part of what the numbers follow from: over another c_k, the checkpoint is of no use.
    make(other, own)
    live_until_report(monkeypatch, 9, other)
    (other / SITE_FOLDER / PRIVATE_FILE).write_bytes(bytes_from_tensors({"own_control": drawn()}))
    close(other)
    assert not any(line.is_resumed for line in read_progress(other))
    assert (results(other) == results(undisturbed)) is (local["rule"] != "scaffold")


def test_small_round_writes_no_checkpoint(tiny_job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live_until_report(monkeypatch, 10, tiny_job, checkpoint_every_s=CHECKPOINT_EVERY_S)
    assert not (tiny_job / CHECKPOINT_FOLDER).exists()
