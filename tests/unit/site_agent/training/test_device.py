from __future__ import annotations

from pathlib import Path

import pytest
import torch

from site_agent.jobs.job_dir import DeviceChoice
from site_agent.training import device
from site_agent.training.device import choose_compute, cpu_flags
from site_agent.training.errors import DeviceUnavailableError

pytestmark = pytest.mark.training


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("fpu sse avx2", "float32"), ("avx2 avx512f avx512_bf16", "bfloat16"), ("amx_bf16 amx_tile", "bfloat16")],
)
def test_precision_on_a_cpu_follows_its_flags(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch, flags: str, precision: str
) -> None:
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset(flags.split()))
    compute = choose_compute(DeviceChoice.AUTO)
    assert (compute.device_name, compute.precision) == ("cpu", precision)
    assert compute.reason


def test_gpu_asked_for_and_missing_is_a_typed_error(no_gpu: None) -> None:
    with pytest.raises(DeviceUnavailableError):
        choose_compute(DeviceChoice.CUDA)


@pytest.mark.parametrize(("has_bfloat16", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_gpu_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, precision: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_options: has_bfloat16)
    compute = choose_compute(DeviceChoice.AUTO)
    assert (compute.device.type, compute.precision, compute.device_name) == ("cuda", precision, "cuda: Some GPU")
    assert choose_compute(DeviceChoice.CPU).device.type == "cpu"


def test_cpu_flags_are_read_from_the_systems_file(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu amx_bf16 sse\n\nprocessor\t: 1\n")
    assert cpu_flags(tmp_path / "cpuinfo") == {"fpu", "amx_bf16", "sse"}
    assert cpu_flags(tmp_path / "none") == frozenset()
