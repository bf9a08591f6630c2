"""The main job as a newcomer runs it: SmolLM2-135M-Instruct, three hospitals, three rounds, one release."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / ".wardround" / "models"
REPORT_KEYS = {
    "run_id", "study", "sites", "base_model", "secure_aggregation", "rounds",
    "eval_loss_before", "eval_loss_after", "metrics", "release_dir", "audit_verified", "seconds",
}  # fmt: skip
LOAD = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = PeftModel.from_pretrained(base, sys.argv[2])
print(sum(parameter.abs().sum().item() for name, parameter in model.named_parameters() if "lora_B" in name))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    work = tmp_path_factory.mktemp("demo") / "work"
    command = [sys.executable, "-m", "wardround", "demo", "--json"]
    options = ["--work-dir", str(work), "--models-dir", str(MODELS)]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    document: dict[str, object] = json.loads(done.stdout)
    return document


@pytest.mark.timeout(1600)
def test_demo_document_has_every_promised_key(report: dict[str, object]) -> None:
    assert set(report) >= REPORT_KEYS
    assert report["secure_aggregation"] is True
    assert report["audit_verified"] is True
    assert len(report["sites"]) == 3  # type: ignore[arg-type]


@pytest.mark.timeout(1600)
def test_demo_evaluation_loss_falls_by_at_least_a_tenth(report: dict[str, object]) -> None:
    before, after = report["eval_loss_before"], report["eval_loss_after"]
    assert isinstance(before, float)
    assert isinstance(after, float)
    assert after <= 0.9 * before


@pytest.mark.timeout(1600)
def test_demo_release_loads_with_peft(report: dict[str, object]) -> None:
    base = MODELS / "smollm2-135m-instruct"
    arguments = [sys.executable, "-c", LOAD, str(base), str(report["release_dir"])]
    loaded = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert loaded.returncode == 0, loaded.stderr[-4000:]
    assert float(loaded.stdout) > 0, "lora_B starts at zero: an adapter that is still zero was not trained"
