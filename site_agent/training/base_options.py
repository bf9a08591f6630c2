"""How a base model is held in memory where it would not fit: in 8 or 4 bits, or with its activations computed twice.

Knows no adapter and no data. Both are choices of the run, for both change the numbers (rounding) or the time.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, assert_never

import torch
from transformers import BitsAndBytesConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from site_agent.training.device import Compute
from site_agent.training.errors import BaseModelInvalidError, QuantizationUnavailableError

QuantizedBits = Literal[8, 4]


def quantization_config(bits: QuantizedBits, compute: Compute) -> BitsAndBytesConfig:
    """What loads a base model in 8 bits (LLM.int8()) or 4 bits (NF4, as QLoRA has it), computing in ``compute.dtype``.

    Raises:
        QuantizationUnavailableError: there is no GPU, or bitsandbytes is not installed.
    """
    if compute.device.type != "cuda":
        raise QuantizationUnavailableError("the run's base model has 8 or 4 bits, and no GPU is used here", bits=bits)
    if find_spec("bitsandbytes") is None:
        raise QuantizationUnavailableError("the run's base model needs the library bitsandbytes", bits=bits)
    match bits:
        case 8:
            return BitsAndBytesConfig(load_in_8bit=True)
        case 4:
            return BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute.dtype
            )
        case _:
            assert_never(bits)


def recompute_activations(base: torch.nn.Module) -> None:
    """Keep no activations inside a layer: the backward pass computes them again (gradient checkpointing).

    Call it on a loaded base after its adapter was put on. The base stays as it is in evaluation, without dropout: only
    the layers themselves are told that they are in training, which is what their recomputing asks for, and no module
    inside them is.

    Raises:
        BaseModelInvalidError: transformers cannot do so with this architecture.
    """
    try:
        base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    except ValueError:
        raise BaseModelInvalidError("gradient checkpointing does not work with this architecture") from None
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise BaseModelInvalidError("gradient checkpointing does not work with this architecture")
    for layer in layers:
        # Not layer.train(), which would switch on the dropout of the modules inside.
        layer.training = True
