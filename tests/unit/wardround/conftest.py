from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fl_protocol.folds.public_state import PublicState
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec


@pytest.fixture
def write_adapter() -> Callable[[Path], None]:
    """Writes an initial adapter of one tensor, as ``init-adapter`` would."""

    def write(folder: Path) -> None:
        name = "base_model.model.q_proj.lora_A.weight"
        layout = AdapterLayout(kind="lora", tensors=(TensorSpec(name=name, shape=(2, 3)),), peft_config={"r": 2})
        state = PublicState(version=0, adapter={name: np.ones((2, 3), np.float32)}, server={})
        (folder / "layout.json").write_text(json.dumps(layout.to_document()))
        (folder / "initial.safetensors").write_bytes(state.to_bytes())

    return write
