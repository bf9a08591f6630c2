"""Adapters between three forms: peft's parameters on a model, named numpy arrays, and the flat vector of a layout.

Knows no data. Names are those that peft saves, so that a release is what ``PeftModel.from_pretrained`` loads.
"""

from __future__ import annotations

import hashlib
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, TaskType, get_peft_model

from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.run_spec_parts import AdapterSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from site_agent.training.errors import (
    AdapterLayoutMismatchError,
    InitialAdapterMismatchError,
    TargetModulesUnknownError,
)

Float32Array = NDArray[np.float32]

_ADAPTER_NAME = "default"
_INIT_DOMAIN = b"wardround/initial-adapter"


def attach_lora(base: torch.nn.Module, spec: AdapterSpec) -> torch.nn.Module:
    """Put LoRA on a base model that is already on its device, and freeze everything else.

    The adapter's parameters are float32 whatever the base's precision.

    Raises:
        TargetModulesUnknownError: a target names no linear module of the base.
    """
    for target in spec.targets:
        if not _has_linear_module(base, target):
            raise TargetModulesUnknownError("the base model has no linear module of this name", target=target)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=list(spec.targets),
        bias="none",
        task_type=TaskType.CAUSAL_LM,
    )
    with peft_warnings_silenced():
        model = get_peft_model(base, config, adapter_name=_ADAPTER_NAME, autocast_adapter_dtype=True)
    # The frozen base computes without dropout; an adapter's own dropout is switched by set_adapter_dropout.
    return model.eval()


@contextmanager
def peft_warnings_silenced() -> Iterator[None]:
    """Silence what peft causes by asking transformers for a property whose name transformers has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def set_adapter_dropout(model: torch.nn.Module, *, is_on: bool) -> None:
    """Switch the dropout inside the adapter, and no other."""
    for module in model.modules():
        for dropout in getattr(module, "lora_dropout", {}).values():
            dropout.train(is_on)


def adapter_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by the names that peft saves, sorted by name."""
    trained = {
        name.replace(f".{_ADAPTER_NAME}.", "."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return dict(sorted(trained.items()))


def adapter_layout(model: torch.nn.Module, spec: RunSpec) -> AdapterLayout:
    """The layout that a run's adapter has on its base model; tensors in the order of their names."""
    parameters = adapter_parameters(model)
    return AdapterLayout(
        kind=spec.adapter.kind.value,
        tensors=tuple(TensorSpec(name=name, shape=tuple(value.shape)) for name, value in parameters.items()),
        peft_config=peft_config_document(spec),
    )


def peft_config_document(spec: RunSpec) -> dict[str, object]:
    """What ``adapter_config.json`` of a release holds: what the run says, and nothing that a version of peft adds."""
    adapter = spec.adapter
    alpha = int(adapter.alpha) if float(adapter.alpha).is_integer() else adapter.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": spec.base_model.name,
        "r": adapter.rank,
        "lora_alpha": alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": sorted(adapter.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def initial_adapter(layout: AdapterLayout, seed: int) -> PublicState:
    """Adapter v0: B is zero, so that it changes nothing; A is uniform in +-1/sqrt(fan in), as peft draws it.

    Drawn by SHA-256 in counter mode and not by a library's generator, so that every site recomputes the same bytes
    whatever its versions and device: block k of tensor ``name`` is SHA-256(domain || seed || k || name), eight
    big-endian 32-bit words; a word's upper 24 bits over 2**24 are uniform in [0, 1).
    """
    adapter: dict[str, Float32Array] = {}
    for tensor in layout.tensors:
        if ".lora_B." in tensor.name:
            adapter[tensor.name] = np.zeros(tensor.shape, dtype=np.float32)
            continue
        unit = _uniform(tensor.n_elements, seed=seed, name=tensor.name)
        bound = 1.0 / np.sqrt(np.float64(tensor.shape[-1]))
        adapter[tensor.name] = ((2.0 * unit - 1.0) * bound).astype(np.float32).reshape(tensor.shape)
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


def _has_linear_module(base: torch.nn.Module, target: str) -> bool:
    return any(
        isinstance(module, torch.nn.Linear) and (name == target or name.endswith(f".{target}"))
        for name, module in base.named_modules()
    )


def _uniform(n_elements: int, *, seed: int, name: str) -> NDArray[np.float64]:
    """float64, shape (n_elements,), multiples of 2**-24 in [0, 1)."""
    prefix, suffix = _INIT_DOMAIN + struct.pack(">Q", seed), name.encode()
    blocks = (
        hashlib.sha256(prefix + struct.pack(">Q", counter) + suffix).digest() for counter in range(-(-n_elements // 8))
    )
    words = np.frombuffer(b"".join(blocks), dtype=">u4")[:n_elements]
    return (words >> 8).astype(np.float64) / 2**24
