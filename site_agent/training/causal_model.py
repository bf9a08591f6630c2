"""Causal language models of a folder, with an adapter on them.

Knows no data and no rounds. The base is frozen. Nothing is fetched: the folder is given, its weights are safetensors,
and no code that came with a model is run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from fl_protocol.spec.adapters.virtual_tokens import PrefixSpec, PromptSpec
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.run_spec_parts import Quantization
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.training.adapter_io import adapter_layout, adapter_parameters, attach_adapter
from site_agent.training.base_options import QuantizedBits, quantization_config, recompute_activations
from site_agent.training.completion_loss import CompletionLoss, PaddedCompletionLoss, choose_completion_loss
from site_agent.training.device import Compute
from site_agent.training.errors import BaseModelInvalidError, PackingUnavailableError
from site_agent.training.sharding import SharedCompletionLoss, n_processes, shard_layers
from site_agent.training.transformers_loading import load_or_explain, load_whole

_log = logging.getLogger(__name__)

_LOCAL_ONLY = {"local_files_only": True, "trust_remote_code": False}


class Tokenizer(Protocol):
    """What the tasks on text need of a tokenizer."""

    chat_template: str | None
    eos_token: str | None
    bos_token_id: int | None
    eos_token_id: int | None

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """The conversation as text."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The text as tokens."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Tokens as text."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdaptedModel:
    """A base model with an adapter on it. Invariant: only the adapter's parameters require a gradient."""

    module: torch.nn.Module
    tokenizer: Tokenizer
    layout: AdapterLayout
    completion_loss: CompletionLoss


def adapt_model(
    base: torch.nn.Module, tokenizer: Tokenizer, spec: RunSpec, *, packing: bool | None = None
) -> AdaptedModel:
    """Put a run's adapter on a loaded base, and choose how its loss is computed.

    Args:
        base: on its device.
        tokenizer: the base's.
        spec: of the run.
        packing: whether rows must be packed, or must not be; None: where the model permits it.

    Raises:
        TargetModulesUnknownError: as ``attach_adapter``.
        PackingUnavailableError: rows must be packed, and the model does not permit it.
        BaseModelInvalidError: activations must be computed twice, and the architecture does not permit it; or as
            ``check_positions``.
    """
    check_positions(base.config, spec)
    module = attach_adapter(base, spec)
    pad_id = getattr(tokenizer, "pad_token_id", None) or 0
    loss: CompletionLoss = PaddedCompletionLoss(module, pad_id=pad_id)
    if packing is not False:
        loss = choose_completion_loss(module, pad_id=pad_id, has_dropout=spec.adapter.has_dropout)
    if packing and isinstance(loss, PaddedCompletionLoss):
        raise PackingUnavailableError("this base model with this adapter does not permit packed rows")
    if spec.local.gradient_checkpointing:
        # After the loss was chosen: choosing leaves every module in evaluation.
        recompute_activations(module.get_base_model())
    if n_processes() > 1:
        trained = list(adapter_parameters(module).values())
        shard_layers(module.get_base_model(), trained)
        loss = SharedCompletionLoss(loss, trained)
    return AdaptedModel(module=module, tokenizer=tokenizer, layout=adapter_layout(module, spec), completion_loss=loss)


def load_adapted(folder: Path, spec: RunSpec, compute: Compute, *, packing: bool | None = None) -> AdaptedModel:
    """The causal model of a folder with a run's adapter on it.

    Raises:
        BaseModelInvalidError: transformers cannot load it.
        QuantizationUnavailableError: the run's base has 8 or 4 bits, and this machine cannot load one.
        TargetModulesUnknownError, PackingUnavailableError: as ``adapt_model``.
    """
    base = load_base(folder, compute, quantization=spec.base_model.quantization)
    return adapt_model(base, load_tokenizer(folder), spec, packing=packing)


def load_base(folder: Path, compute: Compute, *, quantization: Quantization = Quantization.NONE) -> torch.nn.Module:
    """Load a base model by path onto its device, frozen.

    Raises:
        BaseModelInvalidError: transformers cannot load it, or the folder does not hold all of its weights.
        QuantizationUnavailableError: it is to have 8 or 4 bits, and this machine cannot load one.
    """
    options: dict[str, object] = {"dtype": compute.dtype}
    if quantization is not Quantization.NONE:
        bits: QuantizedBits = 8 if quantization is Quantization.INT8 else 4
        options |= {"quantization_config": quantization_config(bits, compute), "device_map": {"": compute.device}}
    model = load_whole(
        lambda: AutoModelForCausalLM.from_pretrained(
            str(folder),
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
            **options,
            **_LOCAL_ONLY,
        )
    )
    if quantization is not Quantization.NONE:
        # bitsandbytes has put it on its device, and does not let it be moved.
        return model.requires_grad_(requires_grad=False).eval()
    _log.info("base model loaded: device=%s precision=%s (%s)", compute.device, compute.precision, compute.reason)
    # On its device before an adapter is put on it: the adapter's float32 must not be cast along with the base.
    return model.to(compute.device).requires_grad_(requires_grad=False).eval()


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer that stands beside a base model.

    Raises:
        BaseModelInvalidError: transformers cannot load it.
    """
    tokenizer = load_or_explain(lambda: AutoTokenizer.from_pretrained(str(folder), **_LOCAL_ONLY))
    return cast("Tokenizer", tokenizer)


def load_config(folder: Path) -> PretrainedConfig:
    """Load a base model's configuration.

    Raises:
        BaseModelInvalidError: transformers does not know it.
    """
    return load_or_explain(lambda: AutoConfig.from_pretrained(str(folder), **_LOCAL_ONLY))


def check_positions(config: PretrainedConfig, spec: RunSpec) -> None:
    """Check that a run's longest example, behind its adapter's virtual tokens, has positions in the base.

    Beyond a table of positions a CPU raises some error or other, and a GPU lets no further job run in its process.

    Raises:
        BaseModelInvalidError: it has not.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    virtual = spec.adapter.virtual_tokens if isinstance(spec.adapter, PromptSpec | PrefixSpec) else 0
    needed = spec.local.max_length + virtual
    if isinstance(positions, int) and needed > positions:
        message = "local.max_length, with the adapter's virtual tokens, is more than the base model's positions"
        raise BaseModelInvalidError(message, expected=positions, found=needed)


def layout_without_weights(folder: Path, spec: RunSpec) -> AdapterLayout:
    """The layout that a run's adapter has on a base model, without reading the base's weights.

    Raises:
        BaseModelInvalidError: transformers does not know the configuration; or as ``check_positions``.
        TargetModulesUnknownError: as ``attach_adapter``.
    """
    config = load_config(folder)
    check_positions(config, spec)
    with torch.device("meta"):
        base = load_or_explain(lambda: AutoModelForCausalLM.from_config(config, trust_remote_code=False))
        return adapter_layout(attach_adapter(base, spec), spec)
