from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fl_protocol.ids import IdentifierInvalidError
from fl_protocol.tensors.digest import TensorEntry, model_digest, tensor_entry, tensors_digest
from fl_protocol.tensors.errors import ModelDigestError

W = np.array([[1.0, 2.0]], np.float32)
B = np.array([3], np.int64)
CONFIG = {"hidden_size": 4, "rope": {"theta": 1e5}}
TOKENIZER = {"tokenizer.json": "aa" * 32}


def entries() -> list[TensorEntry]:
    return [tensor_entry("w", W), tensor_entry("b", B)]


def test_tensors_digest_is_sha256_of_the_sorted_rows() -> None:
    b_sha = hashlib.sha256(b"\x03" + b"\x00" * 7).hexdigest()
    w_sha = hashlib.sha256(bytes.fromhex("0000803f00000040")).hexdigest()
    text = f'[["b","I64",[1],"{b_sha}"],["w","F32",[1,2],"{w_sha}"]]'
    assert tensors_digest({"w": W, "b": B}) == hashlib.sha256(text.encode()).hexdigest()


def test_tensors_digest_does_not_depend_on_order() -> None:
    assert tensors_digest({"w": W, "b": B}) == tensors_digest({"b": B, "w": W})


@pytest.mark.parametrize(
    "other",
    [
        {"w": W},
        {"w": W, "c": B},
        {"w": W.reshape(2, 1), "b": B},
        {"w": W.astype(np.float64), "b": B},
        {"w": W + 1, "b": B},
    ],
)
def test_tensors_digest_of_other_tensors_is_another(other: dict[str, np.ndarray]) -> None:
    assert tensors_digest(other) != tensors_digest({"w": W, "b": B})


def test_model_digest_does_not_depend_on_file_layout_or_volatile_keys() -> None:
    written = CONFIG | {"transformers_version": "5.0", "_name_or_path": "/somewhere", "rope": {"theta": 100000}}
    first = model_digest(entries(), config=CONFIG, tokenizer=TOKENIZER)
    assert model_digest(reversed(entries()), config=written, tokenizer=TOKENIZER) == first


@pytest.mark.parametrize("config", [CONFIG | {"hidden_size": 5}, {"hidden_size": 4}])
def test_model_digest_of_another_configuration_is_another(config: dict[str, object]) -> None:
    first = model_digest(entries(), config=CONFIG, tokenizer=TOKENIZER)
    assert model_digest(entries(), config=config, tokenizer=TOKENIZER) != first


def test_model_digest_of_another_tokenizer_is_another() -> None:
    first = model_digest(entries(), config=CONFIG, tokenizer=TOKENIZER)
    assert model_digest(entries(), config=CONFIG, tokenizer={"tokenizer.json": "ab" * 32}) != first


def test_model_digest_without_or_with_repeated_tensors_is_refused() -> None:
    with pytest.raises(ModelDigestError):
        model_digest([], config=CONFIG, tokenizer=TOKENIZER)
    with pytest.raises(ModelDigestError):
        model_digest([*entries(), tensor_entry("w", W)], config=CONFIG, tokenizer=TOKENIZER)


def test_model_digest_of_what_is_no_json_or_no_digest_is_refused() -> None:
    with pytest.raises(ModelDigestError):
        model_digest(entries(), config={"x": float("inf")}, tokenizer=TOKENIZER)
    with pytest.raises(IdentifierInvalidError):
        model_digest(entries(), config=CONFIG, tokenizer={"tokenizer.json": "short"})
