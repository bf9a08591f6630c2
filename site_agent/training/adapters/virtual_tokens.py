"""Soft prompts and prefixes: virtual tokens that are trained, before a text that the frozen model reads.

``prompt`` (prompt tuning, Lester et al. 2021): vectors in place of the first tokens' embeddings. ``prefix`` (prefix
tuning, Li and Liang 2021, without its reparametrisation): keys and values that every layer attends to. Both change the
sequence, so that such a model is trained in the plain way, a row an example (``completion_loss``). Knows no spec.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import PrefixTuningConfig, PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model

from site_agent.training.adapters.peft_names import PEFT_NAME, peft_warnings_silenced

SAVED_NAME = "prompt_embeddings"
"""The one tensor that peft saves of either kind."""


def attach_prompt(base: torch.nn.Module, *, virtual_tokens: int) -> torch.nn.Module:
    """Put a soft prompt on a base model, and freeze everything else; the prompt is float32, shape (tokens, hidden)."""
    config = PromptTuningConfig(
        num_virtual_tokens=virtual_tokens,
        prompt_tuning_init=PromptTuningInit.RANDOM,
        task_type=TaskType.CAUSAL_LM,
    )
    with peft_warnings_silenced():
        return get_peft_model(base, config, adapter_name=PEFT_NAME).eval()


def attach_prefix(base: torch.nn.Module, *, virtual_tokens: int) -> torch.nn.Module:
    """Put a prefix on a base model, and freeze everything else; it is float32, shape (tokens, 2 layers key width)."""
    config = PrefixTuningConfig(
        num_virtual_tokens=virtual_tokens,
        prefix_projection=False,
        task_type=TaskType.CAUSAL_LM,
    )
    with peft_warnings_silenced():
        return get_peft_model(base, config, adapter_name=PEFT_NAME).eval()


def virtual_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The trained tensor by the name that peft saves it under."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if len(trained) != 1:
        message = "a soft prompt is one tensor"
        raise ValueError(message)
    return {SAVED_NAME: trained[0]}


def prompt_document(*, base_model: str, virtual_tokens: int) -> Mapping[str, object]:
    """What ``adapter_config.json`` of a released soft prompt holds."""
    return {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "num_virtual_tokens": virtual_tokens,
        "prompt_tuning_init": "RANDOM",
        "inference_mode": True,
    }


def prefix_document(*, base_model: str, virtual_tokens: int) -> Mapping[str, object]:
    """What ``adapter_config.json`` of a released prefix holds."""
    return {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "num_virtual_tokens": virtual_tokens,
        "prefix_projection": False,
        "inference_mode": True,
    }
