"""AdapterLayout: which tensors an adapter has, in which order they form one vector, and what peft must know of them.

The tensors' names are those that peft saves (``base_model.model. ... .lora_A.weight``), so that a flat vector can
become a release without a table of names. Knows no model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rfc8785
from numpy.typing import NDArray

from fl_protocol.ids import Sha256Hex
from fl_protocol.tensors.errors import AdapterLayoutInvalidError, AdapterTensorError

Float32Array = NDArray[np.float32]

_KEYS = frozenset({"kind", "tensors", "peft_config"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of an adapter: its name as peft saves it, and its shape. The dtype is float32."""

    name: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise AdapterLayoutInvalidError("a tensor has a printable name", name=self.name[:80])
        if not self.shape or any(isinstance(size, bool) or size < 1 for size in self.shape):
            raise AdapterLayoutInvalidError("a tensor has a shape of positive sizes", name=self.name)

    @property
    def n_elements(self) -> int:
        """The product of the sizes."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLayout:
    """An adapter's tensors as slices of one vector.

    Invariant: names are distinct; the vector is the tensors in this order, each in C order.

    Attributes:
        kind: the adapter kind of the RunSpec.
        tensors: in the order of the vector.
        peft_config: what ``adapter_config.json`` of a release holds; JSON values.
    """

    kind: str
    tensors: tuple[TensorSpec, ...]
    peft_config: Mapping[str, object]

    def __post_init__(self) -> None:
        if not self.tensors:
            raise AdapterLayoutInvalidError("an adapter has at least one tensor")
        names = [tensor.name for tensor in self.tensors]
        if len(set(names)) != len(names):
            raise AdapterLayoutInvalidError("two tensors have the same name")
        self.canonical_bytes()

    @property
    def n_parameters(self) -> int:
        """The length d of the flat vector."""
        return sum(tensor.n_elements for tensor in self.tensors)

    def flatten(self, tensors: Mapping[str, NDArray[Any]]) -> Float32Array:
        """The tensors as one vector, float32, shape (d,), a copy.

        Raises:
            AdapterTensorError: a tensor is missing, unknown, of another shape or not float32.
        """
        self.check(tensors)
        flat = np.empty(self.n_parameters, dtype=np.float32)
        offset = 0
        for tensor in self.tensors:
            flat[offset : offset + tensor.n_elements] = tensors[tensor.name].reshape(-1)
            offset += tensor.n_elements
        return flat

    def unflatten(self, flat: NDArray[Any], *, is_shared: bool = False) -> dict[str, Float32Array]:
        """The vector as named tensors, float32, each a copy; or, with ``is_shared``, a view.

        Raises:
            AdapterTensorError: ``flat`` is not float32 of shape (d,).
        """
        if flat.dtype != np.float32 or flat.shape != (self.n_parameters,):
            message = "a flat adapter is a float32 vector of the layout's length"
            raise AdapterTensorError(message, expected=self.n_parameters, found=str(flat.shape), dtype=str(flat.dtype))
        tensors: dict[str, Float32Array] = {}
        offset = 0
        for tensor in self.tensors:
            piece = flat[offset : offset + tensor.n_elements].reshape(tensor.shape)
            tensors[tensor.name] = piece if is_shared else piece.copy()
            offset += tensor.n_elements
        return tensors

    def check(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Check that these are the layout's tensors.

        Raises:
            AdapterTensorError: a tensor is missing, unknown, of another shape or not float32.
        """
        known = {tensor.name for tensor in self.tensors}
        for name in tensors:
            if name not in known:
                raise AdapterTensorError("the layout has no tensor of this name", tensor=name)
        for tensor in self.tensors:
            array = tensors.get(tensor.name)
            if array is None:
                raise AdapterTensorError("a tensor of the layout is missing", tensor=tensor.name)
            if array.shape != tensor.shape:
                message = "a tensor's shape is not the layout's"
                raise AdapterTensorError(
                    message, tensor=tensor.name, expected=str(tensor.shape), found=str(array.shape)
                )
            if array.dtype != np.float32:
                raise AdapterTensorError("an adapter's tensors are float32", tensor=tensor.name, found=str(array.dtype))

    def to_document(self) -> dict[str, object]:
        """The layout as JSON values."""
        return {
            "kind": self.kind,
            "tensors": [{"name": tensor.name, "shape": list(tensor.shape)} for tensor in self.tensors],
            "peft_config": dict(self.peft_config),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> AdapterLayout:
        """Read what ``to_document`` wrote.

        Raises:
            AdapterLayoutInvalidError: a key is missing, unknown or not of its type.
        """
        if not isinstance(document, Mapping) or set(document) != _KEYS:
            raise AdapterLayoutInvalidError("a layout has exactly the keys kind, tensors and peft_config")
        kind, tensors, config = document["kind"], document["tensors"], document["peft_config"]
        if not isinstance(kind, str) or not isinstance(config, Mapping):
            raise AdapterLayoutInvalidError("kind is text and peft_config a mapping")
        if not isinstance(tensors, Sequence) or isinstance(tensors, str | bytes):
            raise AdapterLayoutInvalidError("tensors is a list")
        return cls(kind=kind, tensors=tuple(_tensor_from_document(item) for item in tensors), peft_config=config)

    def canonical_bytes(self) -> bytes:
        """RFC 8785 of ``to_document``.

        Raises:
            AdapterLayoutInvalidError: ``peft_config`` holds what JSON cannot express exactly.
        """
        try:
            return rfc8785.dumps(self.to_document())  # type: ignore[arg-type]  # JSON values, typed as object
        except rfc8785.CanonicalizationError as error:
            raise AdapterLayoutInvalidError("peft_config holds a value that is not JSON") from error

    def digest(self) -> Sha256Hex:
        """SHA-256 of the canonical bytes: ``adapter.layout_sha256`` of a RunSpec."""
        return Sha256Hex(hashlib.sha256(self.canonical_bytes()).hexdigest())


def _tensor_from_document(item: object) -> TensorSpec:
    if not isinstance(item, Mapping) or set(item) != {"name", "shape"}:
        raise AdapterLayoutInvalidError("a tensor has exactly the keys name and shape")
    name, shape = item["name"], item["shape"]
    if not isinstance(name, str) or not isinstance(shape, list | tuple):
        raise AdapterLayoutInvalidError("a tensor's name is text and its shape a list")
    if not all(isinstance(size, int) for size in shape):
        raise AdapterLayoutInvalidError("a shape is a list of integers", name=name[:80])
    return TensorSpec(name=name, shape=tuple(shape))
