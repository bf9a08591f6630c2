"""Adapters behind frozen towers: they change embeddings, not the model that makes them. No options of their own."""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.spec.adapters.adapter_spec import AdapterDigests, AdapterKind, AdapterSpec
from fl_protocol.spec.faults import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec(AdapterSpec):
    """FedCLIP's: z' = softmax(W2 tanh(W1 z + b1) + b2) * z on an image's embedding z."""

    @property
    def kind(self) -> AdapterKind:
        """Attention."""
        return AdapterKind.ATTENTION

    @property
    def summary(self) -> str:
        """One sentence."""
        return "attention on image embeddings"

    def options(self) -> dict[str, object]:
        """None."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class JointProjectionSpec(AdapterSpec):
    """z' = z + U z on embeddings of images and of texts alike, and the logarithm of the logits' scale."""

    @property
    def kind(self) -> AdapterKind:
        """Joint projection."""
        return AdapterKind.JOINT_PROJECTION

    @property
    def summary(self) -> str:
        """One sentence."""
        return "one projection of image and text embeddings, and the scale of their logits"

    def options(self) -> dict[str, object]:
        """None."""
        return {}


def read_attention(_: Reader, digests: AdapterDigests) -> AttentionSpec:
    """``{}``."""
    return AttentionSpec(layout_sha256=digests.layout_sha256, initial_sha256=digests.initial_sha256)


def read_joint_projection(_: Reader, digests: AdapterDigests) -> JointProjectionSpec:
    """``{}``."""
    return JointProjectionSpec(layout_sha256=digests.layout_sha256, initial_sha256=digests.initial_sha256)
