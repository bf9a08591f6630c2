"""What a trainer says of the machine that it runs on: libraries, devices, memory, whose rights it has.

The document is made by the trainer (``python -m site_agent.training machine``) and read by ``doctor``: printed
where the agent starts the trainer, as ``machine.json`` in the jobs folder where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from site_agent.jobs.documents import JobDirectoryError, read_document, write_document

MACHINE_FILE = "machine.json"
_MAX_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSight:
    """One GPU as torch sees it."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSight:
    """One look of a trainer around itself. Safety: it is the trainer's word, and proves nothing.

    Attributes:
        missing: libraries that training needs and that are not installed; the fields after it are then empty.
        torch: its version.
        cuda_build: the CUDA version that torch was built for; None for a CPU build.
        driver: the version of NVIDIA's kernel driver; None where there is none.
        has_device_nodes: whether ``/dev/nvidia0`` and its like are there.
        gpus: what torch may use.
        precision: what it would compute with: ``float32`` or ``bfloat16``.
        memory_bytes: of the machine, or the limit of its container where that is lower.
        available_bytes: of that, now.
        uid: whose rights it has.
        gids: its groups.
    """

    missing: tuple[str, ...] = ()
    torch: str = ""
    cuda_build: str | None = None
    driver: str | None = None
    has_device_nodes: bool = False
    gpus: tuple[GpuSight, ...] = ()
    precision: str = "float32"
    memory_bytes: int = 0
    available_bytes: int = 0
    uid: int = 0
    gids: tuple[int, ...] = ()

    def to_document(self) -> dict[str, object]:
        """As JSON."""
        return {
            "missing": list(self.missing),
            "torch": self.torch,
            "cuda_build": self.cuda_build,
            "driver": self.driver,
            "has_device_nodes": self.has_device_nodes,
            "gpus": [{"name": gpu.name, "memory_bytes": gpu.memory_bytes} for gpu in self.gpus],
            "precision": self.precision,
            "memory_bytes": self.memory_bytes,
            "available_bytes": self.available_bytes,
            "uid": self.uid,
            "gids": list(self.gids),
        }


def sight_from_document(document: Mapping[str, object]) -> MachineSight | None:
    """Read one; None where the document is something else."""
    try:
        gpus = document["gpus"]
        missing, gids = document["missing"], document["gids"]
        if not isinstance(gpus, list) or not isinstance(missing, list) or not isinstance(gids, list):
            return None
        return MachineSight(
            missing=tuple(_shown(name) for name in missing[:16]),
            torch=_shown(document["torch"]),
            cuda_build=_text(document["cuda_build"]),
            driver=_text(document["driver"]),
            has_device_nodes=document["has_device_nodes"] is True,
            gpus=tuple(
                GpuSight(name=_shown(gpu["name"]), memory_bytes=_number(gpu["memory_bytes"])) for gpu in gpus[:64]
            ),
            precision=_shown(document["precision"]),
            memory_bytes=_number(document["memory_bytes"]),
            available_bytes=_number(document["available_bytes"]),
            uid=_number(document["uid"]),
            gids=tuple(_number(gid) for gid in gids[:256]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _text(value: object) -> str | None:
    return None if value is None else _shown(value)


def _shown(value: object) -> str:
    """Short, and nothing that a terminal would take for a command: a trainer may be somebody else's by now."""
    return "".join(letter for letter in str(value)[:100] if letter.isprintable())


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError
    return value


def write_sight(jobs_dir: Path, sight: MachineSight) -> None:
    """Leave it for the agent. Raises OSError."""
    write_document(jobs_dir / MACHINE_FILE, sight.to_document())


def read_sight(jobs_dir: Path) -> MachineSight | None:
    """What the trainer left; None where there is nothing, or something else."""
    try:
        return sight_from_document(read_document(jobs_dir / MACHINE_FILE, _MAX_BYTES))
    except JobDirectoryError:
        return None
