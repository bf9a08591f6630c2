"""A released whole model beside its base's files is a folder that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from fl_protocol.tensors.safetensors_io import bytes_from_tensors, tensors_from_bytes
from site_agent.training.__main__ import main
from site_agent.training.assembling import assemble_model
from site_agent.training.errors import AdapterUnreadableError
from tests.support.timeline_jobs import make_base

pytestmark = pytest.mark.training


def release_of(base: Path, folder: Path, *, adapter_type: str = "FULL", factor: float = 2.0) -> Path:
    """What a release of a run over this base holds: other weights of the same names."""
    weights = tensors_from_bytes((base / "model.safetensors").read_bytes())
    folder.mkdir()
    changed = {name: (array * np.float32(factor)) for name, array in weights.items()}
    (folder / "model.safetensors").write_bytes(bytes_from_tensors(changed, {"format": "pt"}))
    (folder / "adapter_config.json").write_text(json.dumps({"adapter_type": adapter_type}))
    return folder


def test_assembled_folder_is_loaded_by_transformers_with_the_release_s_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_base(tmp_path / "base")
    release = release_of(base, tmp_path / "release")
    words = ("assemble-model", "--release", str(release), "--base-model", str(base), "--out", str(tmp_path / "model"))
    assert main(list(words)) == 0
    assert "model_sha256" in capsys.readouterr().out
    loaded = AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"), local_files_only=True)
    released = tensors_from_bytes((release / "model.safetensors").read_bytes())
    for name, tensor in loaded.state_dict().items():
        if name in released:
            np.testing.assert_array_equal(tensor.numpy(), released[name])


def test_release_of_before_there_was_a_name_of_its_own_is_read(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    release = release_of(base, tmp_path / "release")
    expected = assemble_model(release, base_model=base, out=tmp_path / "new")
    (release / "model.safetensors").rename(release / "adapter_model.safetensors")
    assert assemble_model(release, base_model=base, out=tmp_path / "old") == expected


def test_release_of_another_kind_or_shape_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    with pytest.raises(AdapterUnreadableError, match="whole model"):
        assemble_model(release_of(base, tmp_path / "lora", adapter_type="LORA"), base_model=base, out=tmp_path / "x")
    other = release_of(base, tmp_path / "other")
    weights = tensors_from_bytes((other / "model.safetensors").read_bytes())
    weights.pop("model.norm.weight")
    (other / "model.safetensors").write_bytes(bytes_from_tensors(weights))
    with pytest.raises(AdapterUnreadableError, match="shape"):
        assemble_model(other, base_model=base, out=tmp_path / "x")
    with pytest.raises(AdapterUnreadableError):
        assemble_model(tmp_path / "nowhere", base_model=base, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()
