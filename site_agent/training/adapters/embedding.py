"""Adapters of embeddings: FedCLIP's attention, and one projection for images and texts. Both begin as no change."""

from __future__ import annotations

import numpy as np
import torch

from fl_protocol.spec.adapters import AdapterSpec
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import TensorSpec
from site_agent.training.adapters.adapter_half import AdapterHalf, DrawUnit, Float32Array
from site_agent.training.clip.adapted import AdaptedTowers
from site_agent.training.clip.towers import TwoTowers
from site_agent.training.contrastive.attention_adapter import AttentionAdapter
from site_agent.training.contrastive.joint_projection import JointProjection
from site_agent.training.errors import AdapterUnsuitableError


def attach_attention(base: torch.nn.Module, _: AdapterSpec) -> torch.nn.Module:
    """Put FedCLIP's adapter behind a base with two towers.

    Raises:
        AdapterUnsuitableError: the base has no two towers.
    """
    towers = _towers(base)
    return AdaptedTowers(towers, AttentionAdapter(towers.dimension))


def attach_joint_projection(base: torch.nn.Module, _: AdapterSpec) -> torch.nn.Module:
    """Put one projection behind both towers of a base.

    Raises:
        AdapterUnsuitableError: the base has no two towers.
    """
    towers = _towers(base)
    return AdaptedTowers(towers, JointProjection(towers.dimension))


def embedding_config(spec: RunSpec) -> dict[str, object]:
    """What ``adapter_config.json`` of a release holds."""
    return {"wardround_adapter": spec.adapter.kind.value, "base_model_name_or_path": spec.base_model.name}


def initial_attention(tensor: TensorSpec, unit: DrawUnit) -> Float32Array:
    """W1 is uniform in +-1/sqrt(d); W2 and both biases are zero, so that each component weighs alike."""
    if tensor.name != "adapter.W1":
        return np.zeros(tensor.shape, dtype=np.float32)
    bound = 1.0 / np.sqrt(np.float64(tensor.shape[-1]))
    drawn: Float32Array = ((2.0 * unit() - 1.0) * bound).astype(np.float32).reshape(tensor.shape)
    return drawn


def initial_joint_projection(tensor: TensorSpec, _: DrawUnit) -> Float32Array:
    """Zeros."""
    return np.zeros(tensor.shape, dtype=np.float32)


def no_dropout(_: torch.nn.Module, __: bool) -> None:  # noqa: FBT001 # the seam's one argument
    """These adapters drop nothing."""


def _towers(base: torch.nn.Module) -> TwoTowers:
    if not isinstance(base, TwoTowers):
        raise AdapterUnsuitableError("this kind of adapter stands behind an image tower and a text tower")
    return base


ATTENTION = AdapterHalf(
    attach=attach_attention, config=embedding_config, initial=initial_attention, set_dropout=no_dropout
)
JOINT_PROJECTION = AdapterHalf(
    attach=attach_joint_projection, config=embedding_config, initial=initial_joint_projection, set_dropout=no_dropout
)
"""The rows of the table."""
