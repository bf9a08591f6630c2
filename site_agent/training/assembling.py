"""Puts a released whole model and its base's configuration and tokenizer into one folder that transformers loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fl_protocol.spec.adapters import AdapterKind
from fl_protocol.tensors.errors import SafetensorsInvalidError
from fl_protocol.tensors.safetensors_io import bytes_from_tensors, tensors_from_bytes
from site_agent.jobs.job_dir import write_file
from site_agent.training.errors import AdapterUnreadableError
from site_agent.training.model_files import CONFIG_FILE, TOKENIZER_FILES, WEIGHTS_FILE, digest_model_folder
from site_agent.training.released_weights import read_released_weights

_CONFIG = "adapter_config.json"


def assemble_model(release: Path, *, base_model: Path, out: Path) -> dict[str, object]:
    """Write ``model.safetensors`` of the release beside the base's other files, and give the new model's digest.

    Raises:
        AdapterUnreadableError: the folder holds no release of a whole model, or one of another shape than the base.
        BaseModelMissingError, BaseModelInvalidError: the base's folder is none.
    """
    digest_model_folder(base_model)
    try:
        config = json.loads((release / _CONFIG).read_bytes())
        of_base = tensors_from_bytes((base_model / WEIGHTS_FILE).read_bytes())
    except (OSError, ValueError, SafetensorsInvalidError) as error:
        raise AdapterUnreadableError("the release cannot be read", reason=type(error).__name__) from error
    if not isinstance(config, dict) or config.get("adapter_type") != AdapterKind.FULL.name:
        raise AdapterUnreadableError("the release is no whole model", file=_CONFIG)
    weights = read_released_weights(release, AdapterKind.FULL)
    if {name: array.shape for name, array in weights.items()} != {name: array.shape for name, array in of_base.items()}:
        raise AdapterUnreadableError("the release has not the base model's shape", file=WEIGHTS_FILE)
    out.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_FILE, *TOKENIZER_FILES):
        if (base_model / name).is_file():
            shutil.copyfile(base_model / name, out / name)
    write_file(out / WEIGHTS_FILE, bytes_from_tensors(weights, {"format": "pt"}))
    return {"model_sha256": digest_model_folder(out)}
