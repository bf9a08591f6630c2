"""Digests of tensors and of models that do not depend on how a tool laid out its files (decision 8).

tensors_digest = SHA-256(RFC 8785 of [[name, dtype, [sizes], SHA-256 of the bytes], ...] sorted by name)
model_digest   = SHA-256(RFC 8785 of {"tensors": the same list, "config": ..., "tokenizer": {file: SHA-256}})
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785
from numpy.typing import NDArray

from fl_protocol.ids import Sha256Hex, sha256_hex_from_text
from fl_protocol.tensors.errors import ModelDigestError
from fl_protocol.tensors.safetensors_io import dtype_name, little_endian_bytes

VOLATILE_CONFIG_KEYS = frozenset({"transformers_version", "_name_or_path", "_commit_hash"})
"""Keys of a configuration that say who wrote it and from where, not what the model is; left out, however deep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """What identifies one tensor of a model: its name, safetensors dtype, shape and SHA-256 of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: Sha256Hex


def tensor_entry(name: str, array: NDArray[Any]) -> TensorEntry:
    """The entry of an array in memory. Raises SafetensorsInvalidError for a dtype that safetensors lacks."""
    sha256 = Sha256Hex(hashlib.sha256(little_endian_bytes(array)).hexdigest())
    return TensorEntry(name=name, dtype=dtype_name(array.dtype), shape=tuple(array.shape), sha256=sha256)


def tensors_digest(tensors: Mapping[str, NDArray[Any]]) -> Sha256Hex:
    """A digest of named arrays, whatever their order.

    Raises:
        SafetensorsInvalidError: a dtype has no name in safetensors.
    """
    return _digest(_rows(tensor_entry(name, array) for name, array in tensors.items()))


def model_digest(
    entries: Iterable[TensorEntry], *, config: Mapping[str, object], tokenizer: Mapping[str, str]
) -> Sha256Hex:
    """A digest of a model: its tensors, its configuration and its tokenizer's files.

    Args:
        entries: every tensor, over all files of the model, in any order.
        config: the parsed ``config.json``; volatile keys are left out.
        tokenizer: file name to SHA-256 of the file's bytes.

    Raises:
        ModelDigestError: a tensor is named twice, there is none, a digest is none, or the configuration is not JSON.
    """
    rows = _rows(entries)
    if not rows:
        raise ModelDigestError("a model has at least one tensor")
    for sha256 in tokenizer.values():
        sha256_hex_from_text(sha256)
    return _digest({"tensors": rows, "config": _without_volatile(config), "tokenizer": dict(tokenizer)})


def _rows(entries: Iterable[TensorEntry]) -> list[list[object]]:
    ordered = sorted(entries, key=lambda entry: entry.name)
    for before, after in itertools.pairwise(ordered):
        if before.name == after.name:
            raise ModelDigestError("a tensor is named twice", tensor=after.name)
    return [[entry.name, entry.dtype, list(entry.shape), entry.sha256] for entry in ordered]


def _without_volatile(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_volatile(item) for key, item in value.items() if key not in VOLATILE_CONFIG_KEYS}
    if isinstance(value, list | tuple):
        return [_without_volatile(item) for item in value]
    return value


def _digest(document: object) -> Sha256Hex:
    try:
        data = rfc8785.dumps(document)  # type: ignore[arg-type]  # JSON values, typed as object
    except rfc8785.CanonicalizationError as error:
        raise ModelDigestError("the configuration holds a value that is not JSON") from error
    return Sha256Hex(hashlib.sha256(data).hexdigest())
