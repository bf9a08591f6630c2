"""The symmetric contrastive loss of CLIP inside a batch. Pure.

Source: Radford et al., *Learning Transferable Visual Models From Natural Language Supervision* (arXiv 2103.00020),
figure 3. A batch whose pairs repeat a class has false negatives: another image of the same class counts as wrong.
``Targets.SAME_CLASS`` shares the target out over all pairs of the class instead.
"""

from __future__ import annotations

import torch
from torch.nn.functional import log_softmax, normalize


def diagonal_targets(n_pairs: int, *, like: torch.Tensor) -> torch.Tensor:
    """Each pair is its own only match: the identity, shape (n, n)."""
    return torch.eye(n_pairs, dtype=like.dtype, device=like.device)


def same_class_targets(classes: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
    """Each pair matches all pairs of its class alike.

    Args:
        classes: int64, shape (n,).
        like: whose dtype and device the targets get.

    Returns:
        shape (n, n), symmetric; each row is a distribution.
    """
    is_same = (classes[:, None] == classes[None, :]).to(dtype=like.dtype, device=like.device)
    return is_same / is_same.sum(dim=1, keepdim=True)


def symmetric_info_nce(
    image_embeddings: torch.Tensor,
    text_embeddings: torch.Tensor,
    *,
    scale: torch.Tensor | float,
    targets: torch.Tensor,
) -> torch.Tensor:
    """L = 1/2 [CE(s X T^t, targets) + CE(s T X^t, targets^t)], the mean over the pairs.

    Args:
        image_embeddings: shape (n, d), any norm; X is each over its norm.
        text_embeddings: shape (n, d), any norm; T likewise. Row i belongs to image i.
        scale: s, the exponential of CLIP's logit scale; positive.
        targets: shape (n, n); row i says which texts match image i, and sums to 1, and so do the columns.

    Returns:
        A scalar in nats, with its graph.
    """
    images, texts = normalize(image_embeddings, dim=-1), normalize(text_embeddings, dim=-1)
    logits = scale * images @ texts.T
    of_images = -(targets * log_softmax(logits, dim=1)).sum(dim=1).mean()
    of_texts = -(targets.T * log_softmax(logits.T, dim=1)).sum(dim=1).mean()
    return (of_images + of_texts) / 2
