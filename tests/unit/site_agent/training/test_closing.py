"""Whole jobs on a tiny model: what is written, and what is said when something is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.tensors.safetensors_io import tensors_from_bytes
from site_agent.jobs.job_dir import (
    GLOBAL_FILE,
    JOB_FILE,
    LAYOUT_FILE,
    PAYLOAD_FILE,
    PROGRESS_FILE,
    RESULT_FILE,
    DataFile,
    DeviceChoice,
    JobFailure,
    JobKind,
    JobResult,
    JobSpec,
    ProgressState,
    read_job,
    read_progress,
    read_result,
    write_job,
)
from site_agent.training import recipe
from site_agent.training.closing import close_job
from site_agent.training.data import split_dataset
from site_agent.training.formats.prompt_jsonl import read_prompts
from site_agent.training.progress import TrainerStopped
from site_agent.training.shelf import ModelShelf
from tests.support.tiny_model import make_tiny_tokenizer
from tests.support.training_jobs import SECRET, bound_spec, make_job, reopen_job

pytestmark = pytest.mark.training


@pytest.fixture
def shelf() -> ModelShelf:
    return ModelShelf()


def payload_of(job_dir: Path) -> dict[str, np.ndarray]:
    return tensors_from_bytes((job_dir / PAYLOAD_FILE).read_bytes())


def done(job_dir: Path, shelf: ModelShelf) -> JobResult:
    outcome = close_job(job_dir, shelf=shelf)
    assert isinstance(outcome, JobResult), outcome
    assert read_result(job_dir) == outcome
    return outcome


def failed(job_dir: Path, shelf: ModelShelf) -> JobFailure:
    outcome = close_job(job_dir, shelf=shelf)
    assert isinstance(outcome, JobFailure), outcome
    assert read_result(job_dir) == outcome
    assert not (job_dir / PAYLOAD_FILE).exists()
    assert SECRET not in (job_dir / RESULT_FILE).read_text()
    return outcome


def trained_state(model: Path, **sections: object) -> PublicState:
    """A public state after one round, other than v0."""
    _, layout, _ = bound_spec(model, **sections)
    values = np.random.default_rng(5).normal(0, 0.05, layout.n_parameters).astype(np.float32)
    return PublicState(version=1, adapter=layout.unflatten(values))


def test_train_job_writes_what_the_algorithm_weighs(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    job_dir = tmp_path / "job"
    spec = make_job(job_dir, model_folder=tiny_model, records=records)
    result = done(job_dir, shelf)
    raw = payload_of(job_dir)
    _, layout, _ = bound_spec(tiny_model)
    weighed = ALGORITHMS["fedavg-lora"].weigh(
        raw, n_records=result.records, spec=spec, layout=layout, kind=RoundKind.TRAIN
    )
    assert set(weighed) == set(raw) | {"weight", "was_clipped"}
    assert (result.records, result.patients, result.device, result.precision) == (40, 40, "cpu", "float32")
    assert result.held_out_records == int(raw["eval_records"][0]) == 8
    assert result.sha256 == read_prompts(records).sha256
    assert result.metrics["update_norm"] == pytest.approx(np.linalg.norm(raw["adapter_update"].astype(np.float64)))
    assert result.metrics["update_norm"] > 0
    assert result.metrics["train_loss"] == pytest.approx(raw["train_loss_sum"][0] / raw["train_tokens"][0])
    assert {"torch", "transformers", "peft"} <= set(result.versions)
    states = [line.state for line in read_progress(job_dir)]
    assert sorted(set(states), key=states.index) == [
        ProgressState.LOADING, ProgressState.EVALUATING, ProgressState.TRAINING
    ]  # fmt: skip
    assert (read_progress(job_dir)[-1].step, read_progress(job_dir)[-1].steps) == (3, 3)


def test_evaluation_sums_are_those_of_transformers_on_the_adapter_that_was_received(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    job_dir = tmp_path / "job"
    make_job(job_dir, model_folder=tiny_model, records=records)
    done(job_dir, shelf)
    # Adapter v0 changes nothing, so the yardstick is the base model by itself.
    model, tokenizer = AutoModelForCausalLM.from_pretrained(str(tiny_model)).eval(), make_tiny_tokenizer()
    split = split_dataset(read_prompts(records), holdout_fraction=0.25, max_records=8)
    loss_sum, n_tokens = 0.0, 0
    for record in split.held_out:
        prompt = f"<|im_start|>user\n{record.prompt}<|im_end|>\n<|im_start|>assistant\n"
        prompt_ids = tokenizer.encode(prompt)
        ids = torch.tensor([prompt_ids + tokenizer.encode(f"{record.completion}<|im_end|>")])
        labels = ids.clone()
        labels[0, : len(prompt_ids)] = -100
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=labels).loss)
        loss_sum += loss * (ids.shape[1] - len(prompt_ids))
        n_tokens += ids.shape[1] - len(prompt_ids)
    raw = payload_of(job_dir)
    assert int(raw["eval_tokens"][0]) == n_tokens
    assert float(raw["eval_loss_sum"][0]) == pytest.approx(loss_sum, rel=1e-5)


def test_training_learns_what_its_records_have_in_common(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    job_dir = tmp_path / "job"
    local = {"steps": 60, "batch_size": 8, "learning_rate": 0.05}
    make_job(job_dir, model_folder=tiny_model, records=records, local=local, adapter={"rank": 8, "alpha": 32})
    done(job_dir, shelf)
    losses = [line.loss for line in read_progress(job_dir) if line.loss is not None]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_same_job_twice_gives_the_same_bytes_and_another_seed_others(
    tmp_path: Path, tiny_model: Path, records: Path
) -> None:
    payloads = []
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        make_job(tmp_path / name, model_folder=tiny_model, records=records, seed=seed, adapter={"dropout": 0.1})
        done(tmp_path / name, ModelShelf())
        payloads.append((tmp_path / name / PAYLOAD_FILE).read_bytes())
    assert payloads[0] == payloads[1]
    assert payloads[0] != payloads[2]


def test_warm_trainer_gives_the_bytes_of_a_cold_one(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    for name in ("first", "second"):
        make_job(tmp_path / name, model_folder=tiny_model, records=records)
        done(tmp_path / name, shelf)
    assert (tmp_path / "first" / PAYLOAD_FILE).read_bytes() == (tmp_path / "second" / PAYLOAD_FILE).read_bytes()


def test_base_is_bit_identical_after_training(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    spec = make_job(tmp_path / "job", model_folder=tiny_model, records=records, local={"learning_rate": 1.0})
    done(tmp_path / "job", shelf)
    module = shelf.take(tiny_model, spec, sha256=spec.base_model.sha256, compute=shelf._key.compute).module
    on_disk = AutoModelForCausalLM.from_pretrained(str(tiny_model)).state_dict()
    in_memory = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): value
        for name, value in module.state_dict().items()
        if ".lora_" not in name
    }
    assert set(in_memory) == set(on_disk)
    assert all(torch.equal(in_memory[name], on_disk[name]) for name in on_disk)


def test_evaluate_job_sends_the_evaluation_alone_and_trains_nothing(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    state = trained_state(tiny_model)
    make_job(tmp_path / "train", model_folder=tiny_model, records=records, state=state, round_index=1)
    make_job(
        tmp_path / "evaluate",
        model_folder=tiny_model,
        records=records,
        state=state,
        round_index=3,
        kind=JobKind.EVALUATE,
    )
    done(tmp_path / "train", shelf)
    result = done(tmp_path / "evaluate", shelf)
    trained, evaluated = payload_of(tmp_path / "train"), payload_of(tmp_path / "evaluate")
    assert set(evaluated) == {"eval_loss_sum", "eval_tokens", "eval_records"}
    assert all(np.array_equal(evaluated[name], trained[name]) for name in evaluated)
    assert "train_loss" not in result.metrics


def test_round_between_two_evaluations_sends_zeros(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    state = trained_state(tiny_model)
    for round_index in (1, 2):
        name = f"round-{round_index}"
        make_job(
            tmp_path / name,
            model_folder=tiny_model,
            records=records,
            state=state,
            round_index=round_index,
            evaluation={"every": 2},
        )
        done(tmp_path / name, shelf)
    assert payload_of(tmp_path / "round-1")["eval_tokens"].tolist() == [0]
    assert payload_of(tmp_path / "round-2")["eval_tokens"][0] > 0


def test_inspect_job_counts_without_a_model(tmp_path: Path, records: Path, shelf: ModelShelf) -> None:
    job_dir = tmp_path / "look"
    job_dir.mkdir()
    job = JobSpec(job_id="look", kind=JobKind.INSPECT, data=DataFile(path=str(records)), seed=0, timeout_s=9.0)
    write_job(job_dir, job)
    result = done(job_dir, shelf)
    assert (result.records, result.patients, result.sha256) == (40, 40, read_prompts(records).sha256)
    assert not (job_dir / PAYLOAD_FILE).exists()


def test_records_left_out_are_counted(tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf) -> None:
    with records.open("a") as stream:
        for k in range(20):
            stream.write(json.dumps({"id": f"long{k}", "prompt": "w" * 200, "completion": "c"}) + "\n")
    make_job(tmp_path / "job", model_folder=tiny_model, records=records, evaluation={"max_records": 1000})
    result = done(tmp_path / "job", shelf)
    assert result.metrics["held_out_left_out"] > 0
    assert result.metrics["train_left_out"] > 0


def test_half_a_payload_is_removed_and_half_a_line_of_progress_spoils_no_other(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    make_job(tmp_path / "job", model_folder=tiny_model, records=tmp_path / "none.jsonl")
    (tmp_path / "job" / PAYLOAD_FILE).write_bytes(b"half")
    (tmp_path / "job" / PROGRESS_FILE).write_text("half")
    failed(tmp_path / "job", shelf)
    assert [line.state for line in read_progress(tmp_path / "job")] == [ProgressState.LOADING]


# Faults: each a stable code, and not a word of a record.


def test_dataset_faults_have_their_codes(tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf) -> None:
    content = records.read_text().splitlines()
    faults = {
        "dataset-missing": None,
        "dataset-empty": "",
        "dataset-malformed": "\n".join([*content[:6], json.dumps({"id": "x", "prompt": SECRET}), *content[6:]]),
        "dataset-too-small": "\n".join(content[:3]),
    }
    for code, text in faults.items():
        data = tmp_path / f"{code}.jsonl"
        if text is not None:
            data.write_text(text)
        make_job(tmp_path / code, model_folder=tiny_model, records=data, data={"min_records": 10})
        failure = failed(tmp_path / code, shelf)
        assert failure.code == code
        assert failure.advice
        if code == "dataset-malformed":
            assert failure.facts == {"file": "dataset-malformed.jsonl", "record": 7, "field": "completion"}


def test_everything_held_out_is_a_typed_failure(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    make_job(tmp_path / "job", model_folder=tiny_model, records=records, local={"max_length": 8})
    assert failed(tmp_path / "job", shelf).code == "no-usable-records"


def test_base_model_that_was_changed_is_a_typed_failure(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    make_job(tmp_path / "first", model_folder=folder, records=records)
    make_job(tmp_path / "second", model_folder=folder, records=records)
    done(tmp_path / "first", shelf)
    # Under a warm trainer, too.
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    failure = failed(tmp_path / "second", shelf)
    assert failure.code == "base-model-digest-mismatch"
    assert failure.facts["expected"] != failure.facts["found"]


def test_base_model_missing_is_a_typed_failure(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    make_job(tmp_path / "job", model_folder=folder, records=records)
    shutil.rmtree(folder)
    assert failed(tmp_path / "job", shelf).code == "base-model-missing"


def test_job_for_another_base_model_than_the_runs_is_refused(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    make_job(tmp_path / "job", model_folder=tiny_model, records=records)
    document = json.loads((tmp_path / "job" / JOB_FILE).read_text())
    document["base_model"]["sha256"] = "ab" * 32
    (tmp_path / "job" / JOB_FILE).write_text(json.dumps(document))
    assert failed(tmp_path / "job", shelf).code == "job-file-invalid"


def test_model_without_a_template_is_a_typed_failure(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    assert not tokenizer.chat_template
    make_job(tmp_path / "job", model_folder=folder, records=records)
    assert failed(tmp_path / "job", shelf).code == "chat-template-unusable"


def test_layout_of_another_run_is_a_typed_failure(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    make_job(tmp_path / "job", model_folder=tiny_model, records=records)
    _, other, _ = bound_spec(tiny_model, adapter={"targets": ["q_proj"]})
    (tmp_path / "job" / LAYOUT_FILE).write_bytes(other.canonical_bytes())
    assert failed(tmp_path / "job", shelf).code == "adapter-layout-mismatch"


def test_layout_digest_of_the_run_is_recomputed(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    make_job(tmp_path / "job", model_folder=tiny_model, records=records)
    job = read_job(tmp_path / "job")
    spec = dict(job.run_spec or {})
    spec["adapter"] = {**spec["adapter"], "layout_sha256": "ab" * 32}
    reopen_job(tmp_path / "job", job, run_spec=spec)
    assert failed(tmp_path / "job", shelf).code == "adapter-layout-mismatch"


def test_adapter_v0_that_the_seed_does_not_give_is_a_typed_failure(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    planted = PublicState(version=0, adapter=trained_state(tiny_model).adapter)
    make_job(tmp_path / "job", model_folder=tiny_model, records=records, state=planted)
    failure = failed(tmp_path / "job", shelf)
    assert failure.code == "initial-adapter-mismatch"
    assert failure.facts["received"] == planted.digest()


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        (GLOBAL_FILE, None, "job-file-missing"),
        (GLOBAL_FILE, b"garbage", "safetensors-invalid"),
        (LAYOUT_FILE, None, "job-file-missing"),
        (LAYOUT_FILE, b"{}", "adapter-layout-invalid"),
        (JOB_FILE, b"{}", "job-file-invalid"),
    ],
)
def test_file_of_the_contract_that_is_wrong_is_a_typed_failure(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf, name: str, content: bytes | None, code: str
) -> None:
    make_job(tmp_path / "job", model_folder=tiny_model, records=records)
    if content is None:
        (tmp_path / "job" / name).unlink()
    else:
        (tmp_path / "job" / name).write_bytes(content)
    assert failed(tmp_path / "job", shelf).code == code


def test_run_spec_with_faults_lists_them(tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf) -> None:
    make_job(tmp_path / "job", model_folder=tiny_model, records=records)
    job = read_job(tmp_path / "job")
    spec = {**(job.run_spec or {}), "rounds": 0, "compression": {"kind": "sketch"}}
    reopen_job(tmp_path / "job", job, run_spec=spec)
    failure = failed(tmp_path / "job", shelf)
    assert failure.code == "run-spec-invalid"
    assert "rounds" in failure.message
    assert "compression" in failure.message


def test_gpu_that_is_not_there_is_a_typed_failure(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    make_job(tmp_path / "job", model_folder=tiny_model, records=records)
    reopen_job(tmp_path / "job", read_job(tmp_path / "job"), device=DeviceChoice.CUDA)
    assert failed(tmp_path / "job", shelf).code == "device-unavailable"


def test_training_that_diverges_is_a_typed_failure(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    make_job(tmp_path / "job", model_folder=tiny_model, records=records, local={"learning_rate": 1e30})
    failure = failed(tmp_path / "job", shelf)
    assert failure.code == "loss-not-finite"
    assert "learning_rate" in failure.advice


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out-of-memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out-of-memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out-of-memory"),
        (RuntimeError(f"index {SECRET} is out of range"), "unexpected-failure"),
        (ZeroDivisionError(SECRET), "unexpected-failure"),
    ],
)
def test_error_of_a_library_tells_its_type_and_never_its_text(
    tmp_path: Path,
    tiny_model: Path,
    records: Path,
    shelf: ModelShelf,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    code: str,
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(recipe, "train", fail)
    make_job(tmp_path / "job", model_folder=tiny_model, records=records)
    failure = failed(tmp_path / "job", shelf)
    assert failure.code == code
    assert failure.facts == ({} if code == "out-of-memory" else {"type": type(error).__name__})
    assert SECRET not in caplog.text


def test_job_whose_folder_was_taken_away_ends_no_trainer(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_job(tmp_path / "job", model_folder=tiny_model, records=records)
    monkeypatch.setattr(recipe, "train", lambda *_arguments, **_options: shutil.rmtree(tmp_path / "job"))
    assert isinstance(close_job(tmp_path / "job", shelf=shelf), JobFailure)
    assert not (tmp_path / "job").exists()


def test_trainer_that_is_stopped_leaves_the_job_open(
    tmp_path: Path, tiny_model: Path, records: Path, shelf: ModelShelf
) -> None:
    make_job(tmp_path / "job", model_folder=tiny_model, records=records)
    answers = iter([False] * 6 + [True])
    with pytest.raises(TrainerStopped):
        close_job(tmp_path / "job", shelf=shelf, should_stop=lambda: next(answers))
    assert read_result(tmp_path / "job") is None
    done(tmp_path / "job", shelf)
