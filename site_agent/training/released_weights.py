"""The weights and the RunSpec of a release's folder, for whoever downloaded it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ProtocolError
from fl_protocol.spec.adapters import AdapterKind
from fl_protocol.spec.adapters.adapter_spec import PEFT_WEIGHTS_FILE
from fl_protocol.spec.faults import RunSpecFaultsError
from fl_protocol.spec.run_spec import RunSpec, run_spec_from_bytes
from fl_protocol.tensors.safetensors_io import tensors_from_bytes
from site_agent.training.errors import AdapterUnreadableError

RUN_SPEC_FILE = Path("evidence") / "run_spec.json"


def read_released_weights(folder: Path, kind: AdapterKind) -> dict[str, NDArray[np.float32]]:
    """The tensors of a release of this kind.

    Raises:
        AdapterUnreadableError: the folder holds none.
    """
    # Every release had peft's name until there was another.
    names = dict.fromkeys((kind.weights_file, PEFT_WEIGHTS_FILE))
    place = next((folder / name for name in names if (folder / name).is_file()), None)
    if place is None:
        raise AdapterUnreadableError("the folder holds no weights", file=kind.weights_file)
    try:
        return dict(tensors_from_bytes(place.read_bytes()))
    except (OSError, ProtocolError) as error:
        raise AdapterUnreadableError("the weights cannot be read", reason=type(error).__name__) from error


def read_released_spec(folder: Path) -> RunSpec:
    """The RunSpec of a release's run.

    Raises:
        AdapterUnreadableError: the folder holds none.
    """
    try:
        return run_spec_from_bytes((folder / RUN_SPEC_FILE).read_bytes())
    except (OSError, ProtocolError, RunSpecFaultsError) as error:
        raise AdapterUnreadableError("the folder holds no release", file=RUN_SPEC_FILE.name) from error
