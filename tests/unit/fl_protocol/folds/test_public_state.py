from __future__ import annotations

import hashlib

import numpy as np
import pytest
import safetensors.numpy

from fl_protocol.folds.public_state import PublicState, PublicStateInvalidError
from fl_protocol.tensors.errors import SafetensorsInvalidError
from fl_protocol.tensors.safetensors_io import bytes_from_tensors


def state() -> PublicState:
    return PublicState(
        version=3,
        adapter={"b": np.array([1.5], np.float32), "a": np.array([[2.0, 3.0]], np.float32)},
        server={"steps": np.array([7], np.int64)},
    )


def test_bytes_are_a_safetensors_file_with_prefixed_server_state() -> None:
    loaded = safetensors.numpy.load(state().to_bytes())
    assert {name: array.tolist() for name, array in loaded.items()} == {
        "a": [[2.0, 3.0]],
        "b": [1.5],
        "server.steps": [7],
    }


def test_state_read_from_its_bytes_is_the_same() -> None:
    again = PublicState.from_bytes(state().to_bytes())
    assert again.version == 3
    assert set(again.adapter) == {"a", "b"}
    assert again.server["steps"].tolist() == [7]
    assert again.digest() == state().digest()


def test_digest_is_sha256_of_the_bytes() -> None:
    assert state().digest() == hashlib.sha256(state().to_bytes()).hexdigest()


def test_digest_covers_version_adapter_and_server_state() -> None:
    adapter, server = dict(state().adapter), dict(state().server)
    others = [
        PublicState(version=4, adapter=adapter, server=server),
        PublicState(version=3, adapter=adapter | {"b": np.array([1.25], np.float32)}, server=server),
        PublicState(version=3, adapter=adapter, server={}),
    ]
    assert len({state().digest(), *(other.digest() for other in others)}) == 4


@pytest.mark.parametrize(
    ("version", "adapter"),
    [
        (-1, {"a": np.ones(1, np.float32)}),
        (0, {}),
        (0, {"a": np.ones(1)}),
        (0, {"server.a": np.ones(1, np.float32)}),
        (0, {"a": np.array([np.nan], np.float32)}),
        (0, {"a": np.array([np.inf], np.float32)}),
    ],
)
def test_state_that_is_not_well_formed_is_refused(version: int, adapter: dict[str, np.ndarray]) -> None:
    with pytest.raises(PublicStateInvalidError):
        PublicState(version=version, adapter=adapter)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "wardround-public-state/1"},
        {"format": "wardround-public-state/2", "version": "3"},
        {"format": "wardround-public-state/1", "version": "-3"},
        {"format": "wardround-public-state/1", "version": "03"},
        {"format": "wardround-public-state/1", "version": "3", "more": "x"},
    ],
)
def test_file_with_other_metadata_is_refused(metadata: dict[str, str] | None) -> None:
    data = bytes_from_tensors({"a": np.ones(1, np.float32)}, metadata)
    with pytest.raises(PublicStateInvalidError):
        PublicState.from_bytes(data)


def test_file_in_another_form_than_the_canonical_is_refused() -> None:
    metadata = {"format": "wardround-public-state/1", "version": "3"}
    tensors = {"a": np.ones(1, np.float32), "b": np.ones(2, np.float32)}
    data = bytes_from_tensors(tensors, metadata)
    PublicState.from_bytes(data)
    # The same tensors, the header padded by eight more spaces.
    length = int.from_bytes(data[:8], "little")
    padded = (length + 8).to_bytes(8, "little") + data[8 : 8 + length] + b" " * 8 + data[8 + length :]
    assert set(safetensors.numpy.load(padded)) == {"a", "b"}
    with pytest.raises(PublicStateInvalidError):
        PublicState.from_bytes(padded)


def test_file_that_is_cut_short_is_refused() -> None:
    with pytest.raises(SafetensorsInvalidError):
        PublicState.from_bytes(state().to_bytes()[:-1])


def test_state_that_shares_its_bytes_is_the_same_and_copies_none() -> None:
    data = state().to_bytes()
    shared = PublicState.from_bytes(data, is_shared=True)
    assert shared.to_bytes() == data
    assert all(np.shares_memory(array, np.frombuffer(data, np.uint8)) for array in shared.adapter.values())
