"""The files of a base model, and the digest that identifies it, computed without loading it. Knows no torch.

What is hashed is exactly what is loaded: the safetensors files that the index names (or the single one), the
configuration, and the tokenizer's files.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from fl_protocol.ids import Sha256Hex
from fl_protocol.tensors.digest import TensorEntry, model_digest
from site_agent.training.errors import BaseModelDigestMismatchError, BaseModelInvalidError, BaseModelMissingError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "source.spm",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""Every name under which a tokenizer keeps its pieces: one that is not hashed could be exchanged without a word."""

_HEADER_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 100_000_000

FileStamp = tuple[str, int, int]
"""A file's name, size and time of change: enough to notice that a warm trainer's model was exchanged."""


def digest_model_folder(folder: Path) -> Sha256Hex:
    """The model digest of a folder in the form of Hugging Face.

    Raises:
        BaseModelMissingError: the configuration, the weights or the tokenizer are missing.
        BaseModelInvalidError: a file is not what its name says.
    """
    tokenizer = {name: _file_sha256(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
    if not tokenizer:
        raise BaseModelMissingError("the base model's folder holds no tokenizer")
    config = _read_json(folder / CONFIG_FILE)
    entries = [entry for path in weight_files(folder) for entry in _tensor_entries(path)]
    return model_digest(entries, config=config, tokenizer=tokenizer)


def verify_model_folder(folder: Path, expected_sha256: str) -> None:
    """Check that a folder holds the model that a run names.

    Raises:
        BaseModelDigestMismatchError: it holds another one.
        BaseModelMissingError, BaseModelInvalidError: as ``digest_model_folder``.
    """
    found = digest_model_folder(folder)
    if found != expected_sha256:
        message = "the folder holds another base model than the run names"
        raise BaseModelDigestMismatchError(message, expected=expected_sha256, found=found)


def stamps_of(folder: Path) -> tuple[FileStamp, ...]:
    """What would change if somebody exchanged a file of the model.

    Raises:
        BaseModelMissingError: a file that the model needs is missing.
    """
    names = [*TOKENIZER_FILES, CONFIG_FILE, WEIGHTS_INDEX_FILE]
    paths = [*(folder / name for name in names if (folder / name).is_file()), *weight_files(folder)]
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that hold the model, in the order of their names.

    Raises:
        BaseModelMissingError: there is none, or one that the index names is missing.
        BaseModelInvalidError: the index is none, or leads out of the folder.
    """
    if not folder.is_dir():
        raise BaseModelMissingError("the base model's folder is missing")
    names = {WEIGHTS_FILE}
    if (folder / WEIGHTS_INDEX_FILE).is_file():
        weight_map = _read_json(folder / WEIGHTS_INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise BaseModelInvalidError("the index of the weights names no file", file=WEIGHTS_INDEX_FILE)
        names = {str(name) for name in weight_map.values()}
    if any(Path(name).name != name for name in names):
        raise BaseModelInvalidError("the index of the weights leads out of the folder", file=WEIGHTS_INDEX_FILE)
    paths = tuple(folder / name for name in sorted(names))
    for path in paths:
        if not path.is_file():
            raise BaseModelMissingError("a file of the base model is missing", file=path.name)
    return paths


def _tensor_entries(path: Path) -> Iterator[TensorEntry]:
    """The entries of one safetensors file; each tensor's bytes are hashed where they lie, never copied."""
    if path.stat().st_size == 0:
        raise BaseModelInvalidError("a file of the base model is empty", file=path.name)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        view = memoryview(content)
        try:
            yield from _entries_of_view(view, path.name)
        finally:
            view.release()


def _entries_of_view(view: memoryview, file: str) -> Iterator[TensorEntry]:
    invalid = BaseModelInvalidError("a file of the base model is no safetensors file", file=file)
    if len(view) < _HEADER_LENGTH.size:
        raise invalid
    (length,) = _HEADER_LENGTH.unpack(view[: _HEADER_LENGTH.size])
    start = _HEADER_LENGTH.size + length
    if length > _MAX_HEADER_BYTES or start > len(view):
        raise invalid
    try:
        header: object = json.loads(bytes(view[_HEADER_LENGTH.size : start]))
    except ValueError:
        raise invalid from None
    if not isinstance(header, dict):
        raise invalid
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            first, last = entry["data_offsets"]
            dtype, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
        except (KeyError, TypeError, ValueError):
            raise invalid from None
        if not 0 <= first <= last <= len(view) - start:
            raise invalid
        with view[start + first : start + last] as tensor:
            sha256 = Sha256Hex(hashlib.sha256(tensor).hexdigest())
        yield TensorEntry(name=str(name), dtype=dtype, shape=shape, sha256=sha256)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_json(path: Path) -> Mapping[str, object]:
    try:
        document: object = json.loads(path.read_bytes())
    except OSError:
        raise BaseModelMissingError("a file of the base model is missing", file=path.name) from None
    except ValueError:
        raise BaseModelInvalidError("a file of the base model is no JSON", file=path.name) from None
    if not isinstance(document, dict):
        raise BaseModelInvalidError("a file of the base model holds no JSON object", file=path.name)
    return cast("Mapping[str, object]", document)
