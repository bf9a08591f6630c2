"""How the tasks on text fail: each bad input is a typed failure with advice that quotes no record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from site_agent.jobs.job_dir import (
    BaseModelFolder,
    DeviceChoice,
    JobFailure,
    read_job,
    write_job,
)
from site_agent.training.causal_model import layout_without_weights, load_adapted
from site_agent.training.closing import close_job
from site_agent.training.device import choose_compute
from site_agent.training.errors import BaseModelInvalidError
from site_agent.training.model_files import digest_model_folder
from site_agent.training.shelf import ModelShelf
from tests.support.tiny_model import make_tiny_model
from tests.support.training_jobs import (
    SECRET,
    make_job,
    spec_document,
    write_preferences,
    write_records,
    write_texts,
)

pytestmark = pytest.mark.training

PREFERENCES = {"kind": "preference-alignment", "beta": 0.2}
LANGUAGE = {"kind": "language-modelling"}


def fail(folder: Path, tiny_model: Path, records: Path, **options: object) -> JobFailure:
    make_job(folder, model_folder=tiny_model, records=records, **options)  # type: ignore[arg-type]
    result = close_job(folder, shelf=ModelShelf())
    assert isinstance(result, JobFailure), result
    assert SECRET not in json.dumps(result.to_document())
    assert result.advice
    return result


@pytest.mark.parametrize(
    ("write", "data_format", "task", "code"),
    [
        (write_records, "jsonl", PREFERENCES, "dataset-format-unknown"),
        (write_records, "preferences-jsonl", PREFERENCES, "dataset-malformed"),
        (write_texts, "text-jsonl", {"kind": "instruction-tuning"}, "dataset-format-unknown"),
        (write_preferences, "text-jsonl", LANGUAGE, "dataset-malformed"),
    ],
)
def test_wrong_schema_is_a_typed_failure(
    tmp_path: Path,
    tiny_model: Path,
    write: Callable[[Path, int], Path],
    data_format: str,
    task: Mapping[str, object],
    code: str,
) -> None:
    records = write(tmp_path / "d", 20)
    assert fail(tmp_path / "job", tiny_model, records, data_format=data_format, task=task).code == code


@pytest.mark.parametrize(
    ("write", "data_format", "task"),
    [(write_preferences, "preferences-jsonl", PREFERENCES), (write_texts, "text-jsonl", LANGUAGE)],
)
def test_empty_split_is_a_typed_failure(
    tmp_path: Path, tiny_model: Path, write: Callable[[Path, int], Path], data_format: str, task: Mapping[str, object]
) -> None:
    records = write(tmp_path / "d", 1)
    evaluation = {"holdout_fraction": 0.999999}
    failure = fail(tmp_path / "job", tiny_model, records, data_format=data_format, task=task, evaluation=evaluation)
    assert failure.code == "no-usable-records"


@pytest.mark.parametrize("task", [PREFERENCES, {"kind": "instruction-tuning"}])
def test_template_that_the_model_lacks_is_a_typed_failure(
    tmp_path: Path, tiny_model: Path, task: Mapping[str, object]
) -> None:
    folder = tmp_path / "model"
    make_tiny_model(folder)
    (folder / "chat_template.jinja").unlink()
    is_pair = task is PREFERENCES
    records = (write_preferences if is_pair else write_records)(tmp_path / "d", 20)
    data_format = "preferences-jsonl" if is_pair else "jsonl"
    failure = fail(tmp_path / "job", folder, records, data_format=data_format, task=task)
    assert failure.code == "chat-template-unusable"


def test_base_of_another_digest_is_a_typed_failure(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "model"
    make_tiny_model(folder)
    records = write_texts(tmp_path / "d", 20)
    make_job(tmp_path / "job", model_folder=folder, records=records, data_format="text-jsonl", task=LANGUAGE)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    failure = close_job(tmp_path / "job", shelf=ModelShelf())
    assert isinstance(failure, JobFailure)
    assert failure.code == "base-model-digest-mismatch"


def test_base_of_another_architecture_is_a_typed_failure(tmp_path: Path, tiny_model: Path) -> None:
    """The digest is right, for the study lead named this folder; but it holds no causal language model."""
    folder = tmp_path / "model"
    make_tiny_model(folder)
    config = json.loads((folder / "config.json").read_text())
    records = write_texts(tmp_path / "d", 20)
    make_job(tmp_path / "ok", model_folder=folder, records=records, data_format="text-jsonl", task=LANGUAGE)
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit", "architectures": ["ViTModel"]}))
    name_the_folder_s_own_digest(tmp_path / "ok", folder)
    failure = close_job(tmp_path / "ok", shelf=ModelShelf())
    assert isinstance(failure, JobFailure)
    assert failure.code == "base-model-invalid"


def name_the_folder_s_own_digest(job_dir: Path, folder: Path) -> None:
    job, sha256 = read_job(job_dir), digest_model_folder(folder)
    document = {**(job.run_spec or {}), "base_model": {"name": "tiny", "sha256": sha256}}
    write_job(job_dir, replace(job, run_spec=document, base_model=BaseModelFolder(path=str(folder), sha256=sha256)))


def test_base_whose_weights_are_of_other_shapes_is_a_typed_failure(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_tiny_model(folder)
    records = write_texts(tmp_path / "d", 20)
    make_job(tmp_path / "job", model_folder=folder, records=records, data_format="text-jsonl", task=LANGUAGE)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 48}))
    name_the_folder_s_own_digest(tmp_path / "job", folder)
    failure = close_job(tmp_path / "job", shelf=ModelShelf())
    assert isinstance(failure, JobFailure)
    assert failure.code == "base-model-invalid"


def test_base_that_lacks_weights_is_refused_and_never_filled_up_at_random(tmp_path: Path) -> None:
    """transformers draws what is missing: each site would train on another base, and none would know."""
    folder = tmp_path / "model"
    make_tiny_model(folder)
    records = write_texts(tmp_path / "d", 20)
    make_job(tmp_path / "job", model_folder=folder, records=records, data_format="text-jsonl", task=LANGUAGE)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.1." not in name}
    assert 0 < len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    name_the_folder_s_own_digest(tmp_path / "job", folder)
    failure = close_job(tmp_path / "job", shelf=ModelShelf())
    assert isinstance(failure, JobFailure)
    assert failure.code == "base-model-invalid"
    assert failure.facts["missing"] == len(weights) - len(kept)


def test_more_tokens_than_the_base_has_positions_for_are_a_typed_failure(tmp_path: Path) -> None:
    """On a GPU the process that looks behind the end of a table of positions is lost to every further job."""
    folder = tmp_path / "model"
    make_tiny_model(folder)
    config = json.loads((folder / "config.json").read_text())
    shape = {"n_positions": 40, "n_embd": 16, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(vocab_size=config["vocab_size"], **shape)).save_pretrained(folder)
    sha256, prompt = digest_model_folder(folder), {"kind": "prompt", "virtual_tokens": 4}

    def spec_of(max_length: int) -> RunSpec:
        return parse_run_spec(spec_document(sha256, local={"max_length": max_length}, adapter=prompt))

    assert layout_without_weights(folder, spec_of(36)).n_parameters == 4 * 16
    with pytest.raises(BaseModelInvalidError, match="positions") as caught:
        layout_without_weights(folder, spec_of(37))
    assert caught.value.facts == {"expected": 40, "found": 41}
    with pytest.raises(BaseModelInvalidError, match="positions"):
        load_adapted(folder, spec_of(37), choose_compute(DeviceChoice.CPU))


def test_base_of_few_bits_without_a_gpu_is_a_typed_failure(tmp_path: Path, tiny_model: Path) -> None:
    records = write_records(tmp_path / "d", 20)
    base = {"name": "tiny", "sha256": digest_model_folder(tiny_model), "quantization": "int4"}
    failure = fail(tmp_path / "job", tiny_model, records, base_model=base)
    assert failure.code == "quantization-unavailable"
    assert "GPU" in failure.advice
