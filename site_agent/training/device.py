"""Which device and which precision a job computes with, and why. Knows no model.

bfloat16 is used only where the processor multiplies it: on a CPU without AMX or AVX512-BF16 it is hundreds of times
slower than float32. float16 is never chosen, for its gradients need a loss scale to survive.
"""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from site_agent.jobs.job_dir import DeviceChoice
from site_agent.training.errors import DeviceUnavailableError

_BFLOAT16_CPU_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """A choice of device and precision, with its reason."""

    device: torch.device
    dtype: torch.dtype
    device_name: str
    reason: str

    @property
    def precision(self) -> str:
        """The dtype's name: ``float32`` or ``bfloat16``."""
        return str(self.dtype).removeprefix("torch.")


def choose_compute(choice: DeviceChoice) -> Compute:
    """Choose, by what the machine can do.

    Raises:
        DeviceUnavailableError: ``cuda`` was asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if choice is DeviceChoice.CUDA and not has_cuda:
        raise DeviceUnavailableError("the job asks for a GPU and the trainer sees none")
    if has_cuda and choice is not DeviceChoice.CPU:
        name = f"cuda: {torch.cuda.get_device_name()}"
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Compute(
                device=torch.device("cuda"),
                dtype=torch.bfloat16,
                device_name=name,
                reason="the GPU multiplies bfloat16; adapter and loss stay in float32",
            )
        return Compute(
            device=torch.device("cuda"), dtype=torch.float32, device_name=name, reason="the GPU has no bfloat16"
        )
    if cpu_flags() & _BFLOAT16_CPU_FLAGS:
        return Compute(
            device=torch.device("cpu"),
            dtype=torch.bfloat16,
            device_name="cpu",
            reason="the CPU multiplies bfloat16; adapter and loss stay in float32",
        )
    return Compute(
        device=torch.device("cpu"),
        dtype=torch.float32,
        device_name="cpu",
        reason="the CPU does not multiply bfloat16 itself",
    )


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the processor says it can do; empty where the system does not tell, which means float32."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), frozenset())


def peak_memory_bytes(compute: Compute) -> int:
    """The most memory that this process has held, on its device as well; a warm trainer's peak is over all its jobs."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    host = resident if sys.platform == "darwin" else resident * 1024
    return host + (torch.cuda.max_memory_allocated() if compute.device.type == "cuda" else 0)


def generator_states() -> dict[str, torch.Tensor]:
    """The states of the generators that dropout draws from, uint8: the CPU's, and the GPU's where one is in use."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_generator_states(states: Mapping[str, torch.Tensor]) -> None:
    """Let the generators go on from states that ``generator_states`` gave."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def release_memory() -> None:
    """Give back what a failed job left, on the device as well."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
