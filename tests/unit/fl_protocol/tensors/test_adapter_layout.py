from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.tensors.errors import AdapterLayoutInvalidError, AdapterTensorError

A = "base_model.model.q_proj.lora_A.weight"
B = "base_model.model.q_proj.lora_B.weight"


def layout() -> AdapterLayout:
    return AdapterLayout(
        kind="lora",
        tensors=(TensorSpec(name=B, shape=(3, 2)), TensorSpec(name=A, shape=(2, 4))),
        peft_config={"r": 2, "target_modules": ["q_proj"]},
    )


def tensors() -> dict[str, np.ndarray]:
    return {
        A: np.arange(8, dtype=np.float32).reshape(2, 4),
        B: np.arange(100, 106, dtype=np.float32).reshape(3, 2),
    }


def test_flat_vector_is_the_tensors_in_declared_order() -> None:
    assert layout().n_parameters == 14
    assert layout().flatten(tensors()).tolist() == [100, 101, 102, 103, 104, 105, 0, 1, 2, 3, 4, 5, 6, 7]


def test_flat_vector_of_a_transposed_array_follows_c_order() -> None:
    changed = tensors() | {A: np.asfortranarray(tensors()[A])}
    assert np.array_equal(layout().flatten(changed), layout().flatten(tensors()))


def test_unflattening_a_flat_adapter_gives_the_tensors_as_copies() -> None:
    flat = layout().flatten(tensors())
    named = layout().unflatten(flat)
    flat[...] = 0
    assert all(np.array_equal(named[name], array) for name, array in tensors().items())
    assert set(named) == set(tensors())


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("other", np.zeros((1,), np.float32)),
        (A, None),
        (A, np.zeros((4, 2), np.float32)),
        (B, np.zeros((3, 2), np.float64)),
    ],
)
def test_flattening_other_tensors_is_refused_by_name(name: str, array: np.ndarray | None) -> None:
    changed = tensors()
    if array is None:
        del changed[name]
    else:
        changed[name] = array
    with pytest.raises(AdapterTensorError) as caught:
        layout().flatten(changed)
    assert caught.value.facts["tensor"] == name


@pytest.mark.parametrize("flat", [np.zeros(13, np.float32), np.zeros(14), np.zeros((14, 1), np.float32)])
def test_unflattening_another_vector_is_refused(flat: np.ndarray) -> None:
    with pytest.raises(AdapterTensorError):
        layout().unflatten(flat)


def test_layout_read_from_its_document_is_the_same() -> None:
    again = AdapterLayout.from_document(layout().to_document())
    assert again == layout()
    assert again.digest() == layout().digest()


def test_digest_is_sha256_of_sorted_compact_json() -> None:
    text = (
        '{"kind":"lora","peft_config":{"r":2,"target_modules":["q_proj"]},"tensors":['
        f'{{"name":"{B}","shape":[3,2]}},{{"name":"{A}","shape":[2,4]}}]}}'
    )
    assert layout().digest() == hashlib.sha256(text.encode()).hexdigest()


def test_digest_depends_on_the_order_of_tensors() -> None:
    turned = AdapterLayout(kind="lora", tensors=layout().tensors[::-1], peft_config=layout().peft_config)
    assert turned.digest() != layout().digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": 1},
        {"kind": 3},
        {"tensors": "x"},
        {"tensors": []},
        {"tensors": [{"name": "a"}]},
        {"tensors": [{"name": "a", "shape": [0]}]},
        {"tensors": [{"name": "a", "shape": []}]},
        {"tensors": [{"name": "a", "shape": [True]}]},
        {"tensors": [{"name": "a", "shape": [1.0]}]},
        {"tensors": [{"name": "", "shape": [1]}]},
        {"tensors": [{"name": "a", "shape": [1]}, {"name": "a", "shape": [2]}]},
        {"peft_config": {"x": float("nan")}},
        {"peft_config": {"x": object()}},
        {"peft_config": [1]},
    ],
)
def test_document_of_another_form_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(AdapterLayoutInvalidError):
        AdapterLayout.from_document(layout().to_document() | changes)
