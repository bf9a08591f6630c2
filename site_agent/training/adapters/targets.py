"""Whether a base has the modules that a run's adapter targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from site_agent.training.errors import TargetModulesUnknownError


def check_targets(base: torch.nn.Module, targets: Sequence[str]) -> None:
    """Check that each target names a linear module of the base, and none an embedding.

    Raises:
        TargetModulesUnknownError: one does not.
    """
    for target in targets:
        if not _has_linear_module(base, target):
            raise TargetModulesUnknownError("the base model has no linear module of this name", target=target)


def _has_linear_module(base: torch.nn.Module, target: str) -> bool:
    return any(
        isinstance(module, torch.nn.Linear) and (name == target or name.endswith(f".{target}"))
        for name, module in base.named_modules()
    )
