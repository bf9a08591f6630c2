from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from fl_protocol.folds.public_state import PublicState
from site_agent.jobs.job_dir import JobResult, read_result
from site_agent.training.__main__ import main
from site_agent.training.model_files import digest_model_folder
from tests.support.training_jobs import SECRET, make_job, spec_document

pytestmark = pytest.mark.training


@pytest.fixture
def run_yaml(tmp_path: Path, tiny_model: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(spec_document(digest_model_folder(tiny_model))))
    return path


def test_init_adapter_writes_what_its_digests_name(
    tmp_path: Path, tiny_model: Path, run_yaml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["init-adapter", "--run-spec", str(run_yaml), "--base-model", str(tiny_model), "--json"]
    assert main([*arguments, "--out", str(tmp_path / "one")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["layout_sha256"] == hashlib.sha256((tmp_path / "one" / "layout.json").read_bytes()).hexdigest()
    initial = (tmp_path / "one" / "initial.safetensors").read_bytes()
    assert document["initial_sha256"] == hashlib.sha256(initial).hexdigest()
    assert PublicState.from_bytes(initial).version == 0
    assert document["n_parameters"] == 448
    assert document["base_model_sha256"] == digest_model_folder(tiny_model)
    assert main([*arguments, "--out", str(tmp_path / "two")]) == 0
    assert json.loads(capsys.readouterr().out) == document


def test_init_adapter_with_a_bad_spec_lists_every_fault(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**spec_document("ab" * 32), "rounds": 0, "purpose": ""}))
    arguments = ["init-adapter", "--run-spec", str(path), "--base-model", str(tiny_model), "--out", str(tmp_path / "o")]
    assert main([*arguments, "--json"]) == 2
    assert {fault["path"] for fault in json.loads(capsys.readouterr().out)["error"]["faults"]} == {"rounds", "purpose"}
    assert main(arguments) == 2
    assert "purpose" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["- a\n", "a: [", None])
def test_init_adapter_without_a_document_is_wrong_usage(tmp_path: Path, tiny_model: Path, content: str | None) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_text(content)
    arguments = ["init-adapter", "--run-spec", str(path), "--base-model", str(tiny_model), "--out", str(tmp_path / "o")]
    assert main(arguments) == 2
    assert not (tmp_path / "o").exists()


def test_init_adapter_on_another_base_is_refused(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(spec_document("ab" * 32)))
    arguments = ["init-adapter", "--run-spec", str(path), "--base-model", str(tiny_model), "--out", str(tmp_path / "o")]
    assert main(arguments) == 1
    assert "base-model-digest-mismatch" in capsys.readouterr().err


def test_inspect_counts_and_a_malformed_file_is_told_without_its_text(
    records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "--data", str(records), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {
        "sha256": hashlib.sha256(records.read_bytes()).hexdigest(), "records": 40, "patients": 40
    }  # fmt: skip
    records.write_text(records.read_text() + SECRET)
    assert main(["inspect", "--data", str(records)]) == 1
    error = capsys.readouterr().err
    assert "dataset-malformed" in error
    assert "record=41" in error
    assert SECRET not in error


def test_run_does_a_job(tmp_path: Path, tiny_model: Path, records: Path) -> None:
    make_job(tmp_path / "job", model_folder=tiny_model, records=records)
    assert main(["run", str(tmp_path / "job")]) == 0
    assert isinstance(read_result(tmp_path / "job"), JobResult)


def test_run_of_a_folder_that_is_no_job_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path)]) == 1
    assert "job-file-missing" in capsys.readouterr().err


def test_digest_model_prints_the_digest(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["digest-model", str(tiny_model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"base_model_sha256": digest_model_folder(tiny_model)}


def test_generate_answers_with_and_without_an_adapter(
    tmp_path: Path, tiny_model: Path, run_yaml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init = ["init-adapter", "--run-spec", str(run_yaml), "--base-model", str(tiny_model), "--out", str(tmp_path / "v0")]
    assert main(init) == 0
    release = tmp_path / "release"
    release.mkdir()
    layout = json.loads((tmp_path / "v0" / "layout.json").read_text())
    (release / "adapter_config.json").write_text(json.dumps(layout["peft_config"]))
    (release / "adapter_model.safetensors").write_bytes((tmp_path / "v0" / "initial.safetensors").read_bytes())
    capsys.readouterr()
    arguments = ["generate", "--base-model", str(tiny_model), "--prompt", "What?", "--max-new-tokens", "5", "--json"]
    assert main([*arguments, "--adapter", "none", "--adapter", str(release), "--adapter", "none"]) == 0
    document = json.loads(capsys.readouterr().out)
    # Adapter v0 changes nothing, and leaves the base as it was.
    assert len({one["text"] for one in document["generations"]}) == 1
    assert [one["adapter"] for one in document["generations"]] == [None, str(release), None]
    (release / "adapter_model.safetensors").rename(release / "adapter_model.bin")
    assert main([*arguments, "--adapter", str(release)]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "adapter-unreadable"


def test_wrong_usage_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fly"])
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err
