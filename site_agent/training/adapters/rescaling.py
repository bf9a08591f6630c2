"""IA3 (Liu et al. 2022): one trained vector a module that rescales what it gives, or in feed-forward layers takes.

It begins as ones, so that a new adapter changes nothing. Knows no spec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from peft import IA3Config, TaskType, get_peft_model

from site_agent.training.adapters.peft_names import PEFT_NAME, peft_warnings_silenced


def attach_ia3(base: torch.nn.Module, *, targets: Sequence[str], feedforward: Sequence[str]) -> torch.nn.Module:
    """Put IA3 on a base model, and freeze everything else; the vectors are float32 whatever the base's precision.

    Args:
        base: already on its device.
        targets: names of its linear modules.
        feedforward: those of them whose input is rescaled and not their output.
    """
    config = IA3Config(
        target_modules=list(targets), feedforward_modules=list(feedforward), task_type=TaskType.CAUSAL_LM
    )
    with peft_warnings_silenced():
        return get_peft_model(base, config, adapter_name=PEFT_NAME, autocast_adapter_dtype=True).eval()


def ia3_document(*, base_model: str, targets: Sequence[str], feedforward: Sequence[str]) -> Mapping[str, object]:
    """What ``adapter_config.json`` of a released adapter holds."""
    return {
        "peft_type": "IA3",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "target_modules": sorted(targets),
        "feedforward_modules": sorted(feedforward),
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
