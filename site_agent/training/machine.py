"""Looks around the machine for ``doctor``: what training would find. Reads no record and starts nothing."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from site_agent.jobs.machine_sight import GpuSight, MachineSight

_NEEDED = ("torch", "transformers", "peft")
_DRIVER = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)")
_UNLIMITED = 1 << 60


def look_around(
    *, proc: Path = Path("/proc"), dev: Path = Path("/dev"), cgroup: Path = Path("/sys/fs/cgroup")
) -> MachineSight:
    """One look. Loads torch where it is installed, which takes seconds."""
    total, available = memory(proc=proc, cgroup=cgroup)
    missing = tuple(name for name in _NEEDED if find_spec(name) is None)
    numeric = _Numeric() if missing else _torch()
    return MachineSight(
        missing=missing,
        torch=numeric.version,
        cuda_build=numeric.cuda_build,
        driver=driver_version(proc),
        has_device_nodes=any(dev.glob("nvidia[0-9]*")),
        gpus=numeric.gpus,
        precision=numeric.precision,
        memory_bytes=total,
        available_bytes=available,
        uid=os.geteuid(),
        gids=tuple(sorted({os.getegid(), *os.getgroups()})),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Numeric:
    version: str = ""
    cuda_build: str | None = None
    gpus: tuple[GpuSight, ...] = ()
    precision: str = "float32"


def _torch() -> _Numeric:
    import torch

    from site_agent.jobs.job_dir import DeviceChoice
    from site_agent.training.device import choose_compute

    gpus = tuple(
        GpuSight(
            name=torch.cuda.get_device_name(index), memory_bytes=torch.cuda.get_device_properties(index).total_memory
        )
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    )
    return _Numeric(
        version=torch.__version__,
        cuda_build=torch.version.cuda,
        gpus=gpus,
        precision=choose_compute(DeviceChoice.AUTO).precision,
    )


def driver_version(proc: Path) -> str | None:
    """The version of NVIDIA's kernel driver, as it says itself; None where it is not loaded."""
    try:
        said = (proc / "driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = _DRIVER.search(said)
    return "unknown" if found is None else found.group(1)


def memory(*, proc: Path, cgroup: Path) -> tuple[int, int]:
    """Bytes in all and available: the machine's, or what its container's limit leaves of them."""
    fields = _meminfo(proc)
    total, available = fields.get("MemTotal", 0), fields.get("MemAvailable", 0)
    limit, used = _container(cgroup)
    if 0 < limit < min(total or _UNLIMITED, _UNLIMITED):
        return limit, max(0, min(available, limit - used))
    return total, available


def _meminfo(proc: Path) -> dict[str, int]:
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    fields = {}
    for line in lines:
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[0].isdigit():
            fields[name] = int(words[0]) * 1024
    return fields


def _container(cgroup: Path) -> tuple[int, int]:
    """The limit and the use of this process's container; 0 where there is none. Version 2 first, then version 1."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            text = (cgroup / limit).read_text(encoding="ascii").strip()
            return (0 if text == "max" else int(text)), int((cgroup / used).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
    return 0, 0
