"""A base model's folder that is made once and whole, for the programs that make one out of installed packages.

A folder that holds the right model already is left as it is; an interrupted making leaves nothing behind that looks
like one. ``manifest.json`` beside the model names what it was made of and its digest, which a run's
``base_model.sha256`` must equal. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
from pathlib import Path

from fl_protocol.errors import WardroundError
from site_agent.training.model_files import digest_model_folder

MANIFEST_FILE = "manifest.json"


class BuildError(Exception):
    """The model cannot be made; the sentence says why."""


def make_model_once(
    out: Path,
    *,
    manifest: Mapping[str, object],
    is_made_alike: Callable[[Mapping[str, object]], bool],
    write: Callable[[Path], None],
) -> Mapping[str, object]:
    """Make sure that ``out`` holds the model, and give its manifest, with ``path`` and whether it was made now.

    Args:
        out: the model's folder; new, empty, or with an earlier making of it.
        manifest: what the model is made of; the digest is added.
        is_made_alike: whether the manifest of an earlier making is of the same sources.
        write: writes the model's files into an empty folder.

    Raises:
        BuildError: ``out`` holds something else, or ``write`` says so.
    """
    found = read_manifest(out)
    if found is not None and is_made_alike(found) and _is_whole(out, found):
        return {**found, "path": str(out), "converted": False}
    if out.exists() and found is None and any(out.iterdir()):
        raise BuildError(f"{out} holds something else; name an empty or new folder")
    # Beside the target, so that the last step is one rename.
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    beside.mkdir(parents=True)
    try:
        write(beside)
        whole = {**manifest, "sha256": digest_model_folder(beside)}
        (beside / MANIFEST_FILE).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return {**whole, "path": str(out), "converted": True}


def read_manifest(folder: Path) -> Mapping[str, object] | None:
    """The manifest of an earlier making; None where there is none that can be read."""
    try:
        manifest: object = json.loads((folder / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def file_sha256(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def run(make: Callable[[Path], Mapping[str, object]], *, program: str, description: str | None) -> int:
    """The command line of a program that makes a model; 0 done, 1 failed, 2 wrong usage."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder that the model is written to")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    try:
        manifest = make(arguments.out)
    except (BuildError, WardroundError, OSError) as error:
        sys.stderr.write(f"{program}: {error}\n")
        return 1
    if arguments.json:
        sys.stdout.write(json.dumps(manifest) + "\n")
    else:
        done = "converted" if manifest["converted"] else "already converted"
        sys.stdout.write(f"{manifest['name']}: {done}, {manifest['path']}\nsha256: {manifest['sha256']}\n")
    return 0


def _is_whole(folder: Path, manifest: Mapping[str, object]) -> bool:
    try:
        return digest_model_folder(folder) == manifest.get("sha256")
    except WardroundError:
        return False
