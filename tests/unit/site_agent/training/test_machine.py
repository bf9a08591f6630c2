"""What the trainer sees of a machine, by files as Linux and NVIDIA's driver write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from site_agent.jobs.machine_sight import read_sight
from site_agent.training.machine import driver_version, memory
from site_agent.training.spool_commands import tell_of_machine

MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    9000000 kB\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "driver/nvidia").mkdir(parents=True)
    (folder / "meminfo").write_text(MEMINFO)
    return folder


@pytest.mark.parametrize(
    ("said", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC 12.2\n",
            "550.54.15",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n", "570.86.15"),
        ("something else\n", "unknown"),
    ],
)
def test_driver_says_its_version(proc: Path, said: str, version: str) -> None:
    (proc / "driver/nvidia/version").write_text(said)
    assert driver_version(proc) == version


def test_no_driver_is_none(tmp_path: Path) -> None:
    assert driver_version(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (16_000_000 * 1024, 9_000_000 * 1024)),
        ({"memory.max": "max\n", "memory.current": "5\n"}, (16_000_000 * 1024, 9_000_000 * 1024)),
        ({"memory.max": "4000000000\n", "memory.current": "1000000000\n"}, (4_000_000_000, 3_000_000_000)),
        (
            {"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.usage_in_bytes": "5\n"},
            (16_000_000 * 1024, 9_000_000 * 1024),
        ),
        (
            {"memory/memory.limit_in_bytes": "4000000000\n", "memory/memory.usage_in_bytes": "3900000000\n"},
            (4_000_000_000, 100_000_000),
        ),
    ],
)
def test_memory_is_the_containers_where_it_has_a_limit(
    proc: Path, tmp_path: Path, files: dict[str, str], expected: tuple[int, int]
) -> None:
    cgroup = tmp_path / "cgroup"
    for name, content in files.items():
        (cgroup / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroup / name).write_text(content)
    assert memory(proc=proc, cgroup=cgroup) == expected


@pytest.mark.training
def test_trainer_leaves_word_of_its_machine_in_the_jobs_folder(tmp_path: Path) -> None:
    import torch

    tell_of_machine(tmp_path)
    sight = read_sight(tmp_path)
    assert sight is not None
    assert sight.missing == ()
    assert sight.torch == torch.__version__
    assert sight.memory_bytes > sight.available_bytes > 0
    assert len(sight.gpus) == torch.cuda.device_count()
