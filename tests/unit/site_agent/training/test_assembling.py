"""A released whole model beside its base's files is a folder that transformers loads, as the card says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from coordinator.services.model_card_use import use_of
from fl_protocol.spec.adapters import AdapterKind
from fl_protocol.tensors.safetensors_io import bytes_from_tensors, tensors_from_bytes
from site_agent.training.__main__ import main
from site_agent.training.assembling import assemble_model
from site_agent.training.errors import AdapterUnreadableError
from tests.support.timeline_jobs import CODES, make_base

pytestmark = pytest.mark.training


def release_of(base: Path, folder: Path, *, adapter_type: str = "FULL", factor: float = 2.0) -> Path:
    """What a release of a run over this base holds: other weights of the same names."""
    weights = tensors_from_bytes((base / "model.safetensors").read_bytes())
    folder.mkdir()
    changed = {name: (array * np.float32(factor)) for name, array in weights.items()}
    (folder / "adapter_model.safetensors").write_bytes(bytes_from_tensors(changed, {"format": "pt"}))
    (folder / "adapter_config.json").write_text(json.dumps({"adapter_type": adapter_type}))
    return folder


def test_card_s_example_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_base(tmp_path / "trial-base")
    release = release_of(base, tmp_path / "release")
    text = use_of(AdapterKind.FULL).text.replace("{base}", "trial-base").replace("path/to/this/folder", str(release))
    text = text.replace("path/to/trial-base", str(base))
    shell, program = re.findall(r"```(?:sh|python)\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    words = shell.split()
    assert words[:3] == ["python", "-m", "site_agent.training"]
    assert main(words[3:]) == 0
    assert "model_sha256" in capsys.readouterr().out
    names: dict[str, object] = {}
    exec(program, names)  # the example of the card, run as its reader would
    found = names["next_codes"]
    assert isinstance(found, list)
    assert len(found) == 5
    assert set(found) <= set(CODES)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()


def test_release_of_another_kind_or_shape_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    with pytest.raises(AdapterUnreadableError, match="whole model"):
        assemble_model(release_of(base, tmp_path / "lora", adapter_type="LORA"), base_model=base, out=tmp_path / "x")
    other = release_of(base, tmp_path / "other")
    weights = tensors_from_bytes((other / "adapter_model.safetensors").read_bytes())
    weights.pop("model.norm.weight")
    (other / "adapter_model.safetensors").write_bytes(bytes_from_tensors(weights))
    with pytest.raises(AdapterUnreadableError, match="shape"):
        assemble_model(other, base_model=base, out=tmp_path / "x")
    with pytest.raises(AdapterUnreadableError):
        assemble_model(tmp_path / "nowhere", base_model=base, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()
