"""PublicState: everything that a round starts from and that all may see: the global adapter and the server's state.

Its bytes are its identity: the digest in M0 is the SHA-256 of the safetensors bytes that sites download.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ProtocolError
from fl_protocol.ids import Sha256Hex
from fl_protocol.tensors.safetensors_io import (
    is_canonical,
    iter_safetensors,
    metadata_from_bytes,
    tensors_from_bytes,
)

SERVER_PREFIX = "server."
_FORMAT = "wardround-public-state/1"


class PublicStateInvalidError(ProtocolError):
    """A public state, or the bytes of one, is not well formed."""

    code = "public-state-invalid"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PublicState:
    """The public state after ``version`` committed training rounds.

    Invariant: the adapter's tensors are finite float32 and none is called ``server.*``. The arrays are not to be
    changed in place.

    Attributes:
        version: 0 for the initial adapter; N after N rounds.
        adapter: the global adapter, float32, by the layout's names.
        server: what the server's optimiser carries from round to round; empty for fedavg.
    """

    version: int
    adapter: Mapping[str, NDArray[np.float32]]
    server: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.version < 0:
            raise PublicStateInvalidError("a version is not negative", version=self.version)
        if not self.adapter:
            raise PublicStateInvalidError("a public state has an adapter")
        for name, array in self.adapter.items():
            if name.startswith(SERVER_PREFIX):
                raise PublicStateInvalidError("an adapter's tensor may not be called server.*", tensor=name)
            if array.dtype != np.float32:
                raise PublicStateInvalidError("an adapter's tensors are float32", tensor=name, dtype=str(array.dtype))
            # NaN is the least and the largest of what it is among.
            if array.size and not (math.isfinite(array.min()) and math.isfinite(array.max())):
                raise PublicStateInvalidError("an adapter's tensor is not finite", tensor=name)

    def to_bytes(self) -> bytes:
        """Deterministic safetensors bytes; the server's tensors carry the prefix ``server.``."""
        return b"".join(self.iter_bytes())

    def iter_bytes(self) -> Iterator[bytes | memoryview]:
        """The same bytes in pieces; the tensors' are views, valid while the state is."""
        return iter_safetensors(self._tensors(), self._metadata())

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, *, is_shared: bool = False) -> PublicState:
        """Read what ``to_bytes`` wrote, and nothing else.

        Args:
            data: the file.
            is_shared: let the arrays share ``data``'s memory, which nobody may change any more.

        Raises:
            SafetensorsInvalidError: the bytes are no safetensors file.
            PublicStateInvalidError: they hold no public state, or are not the bytes that ``to_bytes`` gives for it.
        """
        metadata = metadata_from_bytes(data)
        version = metadata.get("version", "")
        if metadata.get("format") != _FORMAT or not (version.isascii() and version.isdigit()):
            raise PublicStateInvalidError("the file is no public state of this version")
        adapter: dict[str, NDArray[np.float32]] = {}
        server: dict[str, NDArray[Any]] = {}
        for name, array in tensors_from_bytes(data, is_shared=is_shared).items():
            if name.startswith(SERVER_PREFIX):
                server[name.removeprefix(SERVER_PREFIX)] = array
            else:
                adapter[name] = array
        state = cls(version=int(version), adapter=adapter, server=server)
        # One state has one byte form; otherwise two digests could name the same adapter.
        if not is_canonical(data, state._tensors(), state._metadata()):
            raise PublicStateInvalidError("the bytes are not the canonical form of the state that they hold")
        return state

    def digest(self) -> Sha256Hex:
        """SHA-256 of ``to_bytes()``."""
        digest = hashlib.sha256()
        for piece in self.iter_bytes():
            digest.update(piece)
        return Sha256Hex(digest.hexdigest())

    def _tensors(self) -> dict[str, NDArray[Any]]:
        return {**self.adapter, **{SERVER_PREFIX + name: array for name, array in self.server.items()}}

    def _metadata(self) -> dict[str, str]:
        return {"format": _FORMAT, "version": str(self.version)}
