"""What a local rule keeps at this site from round to round, as files of the job folder's ``site/``.

The agent puts there what the last counted round left, and takes away what this one leaves. Whether that becomes the
next round's is the agent's to know. Knows no rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fl_protocol.tensors.safetensors_io import bytes_from_tensors, tensors_from_bytes
from site_agent.jobs.job_dir import NEXT_PRIVATE_FILE, PRIVATE_FILE, SITE_FOLDER, write_file


def read_private_state(job_dir: Path) -> dict[str, NDArray[Any]]:
    """The tensors that the last counted round left at this site; none before it.

    Raises:
        SafetensorsInvalidError: the file is damaged.
    """
    try:
        data = (job_dir / SITE_FOLDER / PRIVATE_FILE).read_bytes()
    except FileNotFoundError:
        return {}
    return tensors_from_bytes(data)


def write_next_private_state(job_dir: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write what this round leaves. The payload is written after it: who sees a payload may count on this file."""
    (job_dir / SITE_FOLDER).mkdir(exist_ok=True)
    write_file(job_dir / SITE_FOLDER / NEXT_PRIVATE_FILE, bytes_from_tensors(tensors))


def digest_of_private_state(tensors: Mapping[str, NDArray[Any]]) -> str | None:
    """A name for the tensors; None where there are none."""
    return hashlib.sha256(bytes_from_tensors(tensors)).hexdigest() if tensors else None
