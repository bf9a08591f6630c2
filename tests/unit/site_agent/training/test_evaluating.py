"""Whole jobs of a run that compares sites: adapter v0 is evaluated beside the one received, and changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.tensors.safetensors_io import tensors_from_bytes
from site_agent.jobs.job_dir import (
    PAYLOAD_FILE,
    RESULT_FILE,
    DataFile,
    JobFailure,
    JobKind,
    JobResult,
    ProgressState,
    read_progress,
)
from site_agent.training.closing import close_job
from site_agent.training.progress import ProgressReporter
from site_agent.training.shelf import ModelShelf
from tests.support.training_jobs import bound_spec, fill_job, make_job, write_records

pytestmark = pytest.mark.training

COMPARED = {"evaluation": {"metrics": ["loss", "sites-made-worse"]}}
N_HELD_OUT = 8


def moved_state(tiny_model: Path, by: float, version: int = 2) -> PublicState:
    """An adapter that a run could have come to, away from adapter v0."""
    _, layout, initial = bound_spec(tiny_model)
    drawn = np.random.default_rng(3).normal(size=layout.n_parameters).astype(np.float32)
    adapter = layout.unflatten(layout.flatten(dict(initial.adapter)) + np.float32(by) * drawn)
    return PublicState(version=version, adapter=adapter)


def do(
    folder: Path, tiny_model: Path, records: Path, **options: object
) -> tuple[JobResult, dict[str, np.ndarray], dict[str, int]]:
    """What a job says, what it wrote, and the flags that its agent makes of it."""
    spec = make_job(folder, model_folder=tiny_model, records=records, **{**COMPARED, **options})  # type: ignore[arg-type]
    result = close_job(folder, shelf=ModelShelf())
    assert isinstance(result, JobResult), result
    raw = tensors_from_bytes((folder / PAYLOAD_FILE).read_bytes())
    kind = RoundKind.EVALUATE if options.get("kind") is JobKind.EVALUATE else RoundKind.TRAIN
    layout = bound_spec(tiny_model)[1]
    weighed = ALGORITHMS["fedavg-lora"].weigh(raw, n_records=result.records, spec=spec, layout=layout, kind=kind)
    return result, raw, {name: int(weighed[f"eval_{name}"][0]) for name in ("compared", "made_worse")}


def test_adapter_v0_is_not_worse_than_itself(tmp_path: Path, tiny_model: Path, records: Path) -> None:
    result, raw, flags = do(tmp_path / "job", tiny_model, records)
    assert raw["initial_loss_sum"][0] == raw["eval_loss_sum"][0] > 0
    assert flags == {"compared": 1, "made_worse": 0}
    assert result.metrics["initial_eval_loss"] == result.metrics["eval_loss"]
    steps = [line.step for line in read_progress(tmp_path / "job") if line.state is ProgressState.EVALUATING]
    assert steps[-1] == N_HELD_OUT


def test_later_round_finds_the_loss_that_the_first_one_found(tmp_path: Path, tiny_model: Path, records: Path) -> None:
    _, first, _ = do(tmp_path / "0", tiny_model, records)
    # Drawn by chance, this one is a fifth of a nat worse than the base alone.
    far = moved_state(tiny_model, 0.2)
    result, raw, flags = do(tmp_path / "late", tiny_model, records, kind=JobKind.EVALUATE, round_index=2, state=far)
    # Bit for bit, and in a folder in which there never was a first round: of a late site, or of one that started anew.
    assert raw["initial_loss_sum"][0] == first["eval_loss_sum"][0]
    assert raw["initial_tokens"][0] == raw["eval_tokens"][0]
    mean_now, mean_then = (raw[f"{name}_loss_sum"][0] / raw["eval_tokens"][0] for name in ("eval", "initial"))
    assert mean_now - mean_then > 0.1
    assert flags == {"compared": 1, "made_worse": 1}
    assert result.metrics["initial_eval_loss"] == mean_then


def test_round_is_the_same_but_for_the_comparison(tmp_path: Path, tiny_model: Path, records: Path) -> None:
    state = moved_state(tiny_model, 0.05)
    _, compared, _ = do(tmp_path / "a", tiny_model, records, round_index=2, state=state)
    make_job(tmp_path / "b", model_folder=tiny_model, records=records, round_index=2, state=state)
    close_job(tmp_path / "b", shelf=ModelShelf())
    plain = tensors_from_bytes((tmp_path / "b" / PAYLOAD_FILE).read_bytes())
    # The received adapter was put back before training: not a bit of the update is another.
    for name, array in plain.items():
        np.testing.assert_array_equal(compared[name], array, err_msg=name)
    assert set(compared) - set(plain) == {"initial_loss_sum", "initial_tokens"}


def test_same_job_again_writes_the_same_bytes(tmp_path: Path, tiny_model: Path, records: Path) -> None:
    state = moved_state(tiny_model, 0.05)
    for name in ("a", "b"):
        do(tmp_path / name, tiny_model, records, round_index=2, state=state)
    assert (tmp_path / "a" / PAYLOAD_FILE).read_bytes() == (tmp_path / "b" / PAYLOAD_FILE).read_bytes()


class TrainerDiedHereError(BaseException):
    """The process is gone: no clean-up of the trainer's own runs after this."""


def test_trainer_that_dies_at_any_report_gives_the_same_bytes(
    tmp_path: Path, tiny_model: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, shelf = moved_state(tiny_model, 0.05), ModelShelf()
    for name in ("whole", "cut"):
        make_job(tmp_path / name, model_folder=tiny_model, records=records, round_index=2, state=state, **COMPARED)
    close_job(tmp_path / "whole", shelf=shelf)
    payload, n_reports = (tmp_path / "whole" / PAYLOAD_FILE).read_bytes(), len(read_progress(tmp_path / "whole"))
    assert n_reports > 8
    report = ProgressReporter.report
    for number in range(1, n_reports + 1):
        seen = [0]

        def dying(self: ProgressReporter, *arguments: Any, at: int = number, n: list[int] = seen, **facts: Any) -> None:
            n[0] += 1
            if n[0] == at:
                raise TrainerDiedHereError
            report(self, *arguments, **facts)

        with monkeypatch.context() as patched:
            patched.setattr(ProgressReporter, "report", dying)
            with pytest.raises(TrainerDiedHereError):
                close_job(tmp_path / "cut", shelf=shelf, checkpoint_every_s=0.0)
        assert isinstance(close_job(tmp_path / "cut", shelf=shelf, checkpoint_every_s=0.0), JobResult)
        assert (tmp_path / "cut" / PAYLOAD_FILE).read_bytes() == payload
        (tmp_path / "cut" / RESULT_FILE).unlink()


def test_dataset_that_changed_is_compared_with_itself(tmp_path: Path, tiny_model: Path, records: Path) -> None:
    _, first, _ = do(tmp_path / "0", tiny_model, records)
    longer = write_records(tmp_path / "longer.jsonl", 60)
    state = moved_state(tiny_model, 0.0)
    _, raw, flags = do(tmp_path / "1", tiny_model, longer, kind=JobKind.EVALUATE, round_index=2, state=state)
    # The adapter is v0's values under another number: neither better nor worse, on whatever records.
    assert raw["initial_loss_sum"][0] == raw["eval_loss_sum"][0] != first["eval_loss_sum"][0]
    assert flags == {"compared": 1, "made_worse": 0}


def test_round_that_does_not_evaluate_compares_nothing(tmp_path: Path, tiny_model: Path, records: Path) -> None:
    seldom = {"evaluation": {**COMPARED["evaluation"], "every": 3}}
    state = moved_state(tiny_model, 5.0, version=1)
    _, raw, flags = do(tmp_path / "job", tiny_model, records, round_index=1, state=state, **seldom)
    assert (raw["initial_loss_sum"][0], raw["initial_tokens"][0]) == (0.0, 0)
    assert flags == {"compared": 0, "made_worse": 0}


def test_progress_goes_forward_over_both_evaluations(tmp_path: Path, tiny_model: Path, records: Path) -> None:
    do(tmp_path / "job", tiny_model, records, round_index=2, state=moved_state(tiny_model, 0.05))
    lines = [line for line in read_progress(tmp_path / "job") if line.state is ProgressState.EVALUATING]
    steps = [line.step for line in lines]
    assert steps == sorted(steps)
    assert {line.steps for line in lines} == {2 * N_HELD_OUT}
    assert steps[-1] == 2 * N_HELD_OUT


def test_run_that_names_another_adapter_v0_than_its_seed_gives_is_refused(
    tmp_path: Path, tiny_model: Path, records: Path
) -> None:
    spec, layout, _ = bound_spec(tiny_model, **COMPARED)
    other = replace(spec, adapter=replace(spec.adapter, initial_sha256="ab" * 32))
    fill_job(
        tmp_path / "job",
        other,
        layout,
        moved_state(tiny_model, 0.05),
        base=tiny_model,
        data=DataFile(path=str(records)),
        round_index=2,
    )
    result = close_job(tmp_path / "job", shelf=ModelShelf())
    assert isinstance(result, JobFailure)
    assert result.code == "initial-adapter-mismatch"
