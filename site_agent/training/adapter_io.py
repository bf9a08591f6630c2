"""Adapters between three forms: peft's parameters on a model, named numpy arrays, and the flat vector of a layout.

Knows no data. Names are those that peft saves, so that a release is what ``PeftModel.from_pretrained`` loads.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.adapters import AdapterKind
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from site_agent.training.adapters import ADAPTERS
from site_agent.training.adapters.peft_names import saved_name
from site_agent.training.errors import AdapterLayoutMismatchError, InitialAdapterMismatchError

Float32Array = NDArray[np.float32]

_INIT_DOMAIN = b"wardround/initial-adapter"


def attach_adapter(base: torch.nn.Module, spec: RunSpec) -> torch.nn.Module:
    """Put a run's adapter on a base model that is already on its device, and freeze everything else.

    Raises:
        TrainerError: the adapter cannot be put on this base.
    """
    return ADAPTERS[spec.adapter.kind].attach(base, spec.adapter)


def set_adapter_dropout(model: torch.nn.Module, kind: AdapterKind, *, is_on: bool) -> None:
    """Switch the dropout inside the adapter, and no other."""
    ADAPTERS[kind].set_dropout(model, is_on)


def adapter_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by the names that peft saves, sorted by name."""
    trained = {saved_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return dict(sorted(trained.items()))


def adapter_layout(model: torch.nn.Module, spec: RunSpec) -> AdapterLayout:
    """The layout that a run's adapter has on its base model; tensors in the order of their names."""
    parameters = adapter_parameters(model)
    return AdapterLayout(
        kind=spec.adapter.kind.value,
        tensors=tuple(TensorSpec(name=name, shape=tuple(value.shape)) for name, value in parameters.items()),
        peft_config=ADAPTERS[spec.adapter.kind].config(spec),
    )


def initial_adapter(layout: AdapterLayout, seed: int) -> PublicState:
    """Adapter v0, as its kind begins.

    Drawn by SHA-256 in counter mode and not by a library's generator, so that every site recomputes the same bytes
    whatever its versions and device: block k of tensor ``name`` is SHA-256(domain || seed || k || name), eight
    big-endian 32-bit words; a word's upper 24 bits over 2**24 are uniform in [0, 1).
    """
    initial = ADAPTERS[AdapterKind(layout.kind)].initial
    adapter = {
        tensor.name: initial(tensor, partial(_uniform, tensor.n_elements, seed=seed, name=tensor.name))
        for tensor in layout.tensors
    }
    return PublicState(version=0, adapter=adapter)


def load_adapter(model: torch.nn.Module, adapter: Mapping[str, Float32Array], *, layout: AdapterLayout) -> None:
    """Set the adapter's parameters in place.

    Raises:
        AdapterTensorError: a tensor is missing, unknown, of another shape or not float32.
    """
    layout.check(adapter)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(adapter[name])))


def read_adapter(model: torch.nn.Module) -> dict[str, Float32Array]:
    """A copy of the adapter's parameters, float32, by the names that peft saves."""
    return {
        name: parameter.detach().to(device="cpu", dtype=torch.float32, copy=True).numpy()
        for name, parameter in adapter_parameters(model).items()
    }


def verify_layout(found: AdapterLayout, spec: RunSpec, received: AdapterLayout) -> None:
    """Check that the layout made here, the one received and the one that the run names are the same.

    Raises:
        AdapterLayoutMismatchError: they are not.
    """
    named = spec.adapter.layout_sha256
    if found.digest() != received.digest() or (named is not None and named != found.digest()):
        message = "the adapter's layout is not the one that its specification gives on this base model"
        raise AdapterLayoutMismatchError(message, expected=named, received=received.digest(), found=found.digest())


def verify_initial_adapter(state: PublicState, layout: AdapterLayout, spec: RunSpec) -> None:
    """Check that adapter v0 is the one that the run's seed gives (decision 9).

    Raises:
        InitialAdapterMismatchError: it is another one.
    """
    found = initial_adapter(layout, spec.local.seed).digest()
    named = spec.adapter.initial_sha256
    if state.digest() != found or (named is not None and named != found):
        message = "adapter v0 is not the one that the run's seed gives"
        raise InitialAdapterMismatchError(message, expected=named, received=state.digest(), found=found)


def _uniform(n_elements: int, *, seed: int, name: str) -> NDArray[np.float64]:
    """float64, shape (n_elements,), multiples of 2**-24 in [0, 1)."""
    prefix, suffix = _INIT_DOMAIN + struct.pack(">Q", seed), name.encode()
    blocks = (
        hashlib.sha256(prefix + struct.pack(">Q", counter) + suffix).digest() for counter in range(-(-n_elements // 8))
    )
    words = np.frombuffer(b"".join(blocks), dtype=">u4")[:n_elements]
    return (words >> 8).astype(np.float64) / 2**24
