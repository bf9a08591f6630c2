"""GPU, memory and disk as trainers see them, against what is asked of them."""

from __future__ import annotations

import errno
import json
import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fl_protocol.telemetry.findings import Health
from site_agent.doctor.machine_checks import (
    CHECKS,
    judge_disk,
    judge_gpu,
    judge_memory,
    judge_trainer,
    memory_needed,
)
from site_agent.doctor.model_weights import count_weights
from site_agent.doctor.scene import Scene
from site_agent.doctor.table import run_checks
from site_agent.doctor.trainer_sight import TrainerStanding
from site_agent.folder import SiteFolder
from site_agent.jobs.machine_sight import GpuSight, MachineSight, read_sight, sight_from_document, write_sight

H200 = GpuSight(name="NVIDIA H200", memory_bytes=150_000_000_000)
BARE = MachineSight(torch="2.13.0+cpu", memory_bytes=16_000_000_000, available_bytes=12_000_000_000)


@pytest.mark.parametrize(
    ("sight", "device", "code", "health"),
    [
        ({}, "auto", "gpu-none", Health.NOTE),
        ({}, "cpu", "gpu-none", Health.NOTE),
        ({}, "cuda", "gpu-driver-missing", Health.FAILED),
        ({"driver": "550.54.15"}, "auto", "gpu-not-passed", Health.WARNING),
        ({"driver": "550.54.15"}, "cuda", "gpu-not-passed", Health.FAILED),
        ({"driver": "550.54.15", "has_device_nodes": True}, "auto", "gpu-torch-cpu", Health.WARNING),
        (
            {"driver": "450.1", "has_device_nodes": True, "cuda_build": "12.8"},
            "auto",
            "gpu-unusable",
            Health.WARNING,
        ),
        (
            {"driver": "570.1", "has_device_nodes": True, "cuda_build": "12.8", "gpus": (H200,)},
            "auto",
            "gpu-seen",
            Health.OK,
        ),
        (
            {"driver": "570.1", "has_device_nodes": True, "cuda_build": "12.8", "gpus": (H200,)},
            "cpu",
            "gpu-unused",
            Health.NOTE,
        ),
    ],
)
def test_gpu_is_judged_by_what_the_trainer_sees(
    sight: dict[str, object], device: str, code: str, health: Health
) -> None:
    result = judge_gpu(MachineSight(torch="2.13.0", **sight), device=device)  # type: ignore[arg-type]
    assert (result.code, result.health) == (code, health)
    assert health not in {Health.WARNING, Health.FAILED} or result.advice


def test_toolkit_and_image_are_named_where_they_are_what_is_missing() -> None:
    assert "nvidia-ctk" in judge_gpu(MachineSight(torch="x", driver="550"), device="auto").advice
    assert "-cuda" in judge_gpu(MachineSight(torch="x", driver="550", has_device_nodes=True), device="auto").advice


def test_rule_of_memory_is_weights_by_width_a_quarter_more_and_the_process() -> None:
    # docs/operating/doctor.md: 1.25 x weights x bytes of the precision + 1.5 GB.
    assert memory_needed(1_000_000_000, precision="float32") == 5_000_000_000 + 1_500_000_000
    assert memory_needed(1_000_000_000, precision="bfloat16") == 2_500_000_000 + 1_500_000_000


@pytest.mark.parametrize(
    ("n_weights", "code"),
    [(135_000_000, "memory-enough"), (2_300_000_000, "memory-tight"), (3_000_000_000, "memory-short")],
)
def test_memory_is_compared_with_what_there_is_and_what_is_free(n_weights: int, code: str) -> None:
    # float32: 2.2, 13.0 and 16.5 GB, of 16 GB with 12 free.
    assert judge_memory("base", n_weights, BARE, uses_gpu=False).code == code


def test_memory_of_the_gpu_counts_where_it_is_used() -> None:
    sight = MachineSight(torch="x", precision="bfloat16", gpus=(H200,), memory_bytes=1, available_bytes=1)
    assert judge_memory("base", 50_000_000_000, sight, uses_gpu=True).code == "memory-enough"
    assert judge_memory("base", 70_000_000_000, sight, uses_gpu=True).code == "memory-short"


def test_weights_are_counted_from_the_header_of_safetensors(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 60]},
            "b": {"dtype": "F32", "shape": [7], "data_offsets": [60, 88]},
        }
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 88)
    assert count_weights(tmp_path) == 22
    (tmp_path / "model.safetensors").write_bytes(b"no safetensors")
    assert count_weights(tmp_path) is None
    assert count_weights(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("free", "needed", "code"),
    [
        (10 * 10**9, 5 * 10**8, "disk-enough"),
        (4 * 10**9, 5 * 10**8, "disk-little"),
        (4 * 10**8, 5 * 10**8, "disk-full"),
        (10 * 10**9, 11 * 10**9, "disk-full"),
    ],
)
def test_disk_is_compared_with_what_runs_need(free: int, needed: int, code: str) -> None:
    assert judge_disk("state folder", free, needed=needed).code == code


def test_disk_that_cannot_be_asked_is_told(tmp_path: Path) -> None:
    def breaks(path: Path) -> int:
        raise OSError(errno.EIO, "Input/output error", str(path))

    scene = Scene(
        folder=SiteFolder(root=tmp_path),
        clock=lambda: datetime(2026, 1, 1, tzinfo=UTC),
        environment={},
        free_bytes=breaks,
    )
    (result,) = next(check for check in CHECKS if check.name == "disk").run(scene)
    assert (result.code, result.health) == ("folder-unusable", Health.FAILED)


def test_trainer_that_says_nothing_or_lacks_libraries_cannot_train() -> None:
    assert judge_trainer(TrainerStanding(), runner="spool").code == "trainer-silent"
    assert judge_trainer(TrainerStanding(sight=BARE), runner="spool").code == "trainer-silent", (
        "it is the last one's word"
    )
    assert judge_trainer(TrainerStanding(is_alive=True), runner="spool").code == "trainer-untold"
    incomplete = TrainerStanding(is_alive=True, sight=MachineSight(missing=("peft",)))
    told = judge_trainer(incomplete, runner="process")
    assert (told.code, "peft" in told.message) == ("trainer-incomplete", True)
    assert judge_trainer(TrainerStanding(is_alive=True, sight=BARE), runner="process").code == "trainer-good"


@pytest.mark.parametrize(
    ("runner", "code", "advice"),
    [
        ("kind: spool", "runner-good", ""),
        ("kind: docker", "runner-error", "runner.engine"),
        ("kind: docker\n  engine: unix:///nothing/docker.sock\n  image: trainer:latest", "image-mismatch", "DIGEST"),
        (
            f"kind: docker\n  engine: unix:///nothing/docker.sock\n  image: sha256:{'ab' * 32}",
            "engine-unavailable",
            "engine runs",
        ),
        ("kind: kubernetes", "runner-error", "runner.jobs_source"),
    ],
)
def test_runner_is_tried_without_starting_anything(tmp_path: Path, runner: str, code: str, advice: str) -> None:
    (tmp_path / "site.yaml").write_text(f"runner:\n  {runner}\n")
    scene = Scene(folder=SiteFolder(root=tmp_path), clock=lambda: datetime(2026, 1, 1, tzinfo=UTC), environment={})
    (result,) = [result for result in run_checks(scene) if result.name == "runner"]
    assert result.code == code
    assert advice in result.advice
    assert not result.advice or result.advice not in result.message


def test_sight_comes_back_as_it_was_left_and_anything_else_is_none(tmp_path: Path) -> None:
    sight = MachineSight(torch="2.13.0", cuda_build="12.8", gpus=(H200,), uid=10001, gids=(10001, 5))
    write_sight(tmp_path, sight)
    assert read_sight(tmp_path) == sight
    assert read_sight(tmp_path / "nothing") is None
    assert sight_from_document({"torch": 1}) is None
    hostile = sight_from_document({**sight.to_document(), "torch": "\x1b[2J\r" + "x" * 1000})
    assert hostile is not None
    assert hostile.torch == "[2J" + "x" * 95
    assert sight_from_document({**sight.to_document(), "memory_bytes": "much"}) is None
    endless = {"name": "x", "memory_bytes": float("inf")}
    assert sight_from_document({**sight.to_document(), "gpus": [endless]}) is None
    assert sight_from_document({**sight.to_document(), "gids": [float("inf")]}) is None
