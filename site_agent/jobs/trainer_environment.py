"""What a trainer's process gets to see of this one's environment: the little it needs, by name, and nothing else.

Safety: the trainer reads patient data and runs big libraries; it gets no key, no token, no proxy and no network switch.
"""

from __future__ import annotations

from collections.abc import Mapping

_KEPT = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "TMPDIR",
        "VIRTUAL_ENV",
        "PYTHONPATH",
        "LD_LIBRARY_PATH",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_DRIVER_CAPABILITIES",
    }
)


def trainer_environment(environment: Mapping[str, str], *, threads: int | None) -> dict[str, str]:
    """The trainer's environment, out of this process's own.

    Args:
        environment: this process's.
        threads: how many threads the numeric libraries may use; None leaves it to them.
    """
    scrubbed = {name: value for name, value in environment.items() if name in _KEPT}
    scrubbed |= {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    if threads is not None:
        scrubbed |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return scrubbed


def threads_in(environment: Mapping[str, str]) -> int | None:
    """How many threads an environment bounds the numeric libraries to; None where it says nothing that they understand.

    For a trainer that no agent starts: its container's variable is the only word on it. Several trainers on a machine,
    each with as many threads as there are cores, wait for each other for longer than they compute.
    """
    said = environment.get("OMP_NUM_THREADS", "")
    return int(said) if said.isascii() and said.isdigit() and int(said) > 0 else None
