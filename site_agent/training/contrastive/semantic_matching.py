"""MedCLIP's loss between images and texts that never belonged together: their labels say how alike they are. Pure.

Source: Wang, Wu, Agarwal, Sun, *MedCLIP: Contrastive Learning from Unpaired Medical Images and Text*, EMNLP 2022 (arXiv
2210.10163), section 3.3. The paper measures labels by their cosine; the authors' program by their plain product. Both
are here, under their names.
"""

from __future__ import annotations

import torch
from torch.nn.functional import log_softmax, normalize, softmax


def label_similarity(image_labels: torch.Tensor, text_labels: torch.Tensor, *, is_cosine: bool) -> torch.Tensor:
    """s_ij = l_i . l_j, over both norms where ``is_cosine``; a vector of zeros is alike to nothing (0).

    Args:
        image_labels: shape (n, k), each in {-1, 0, 1}: denied, not spoken of, present.
        text_labels: shape (m, k).
        is_cosine: the paper's form; otherwise that of the authors' program.

    Returns:
        shape (n, m).
    """
    if is_cosine:
        image_labels, text_labels = normalize(image_labels, dim=1), normalize(text_labels, dim=1)
    return image_labels @ text_labels.T


def semantic_matching(
    image_embeddings: torch.Tensor,
    text_embeddings: torch.Tensor,
    *,
    similarity: torch.Tensor,
    scale: torch.Tensor | float,
) -> torch.Tensor:
    """L = 1/2 (L^{v->t} + L^{t->v}), each the mean cross entropy of the similarities of its side.

    L^{v->t} = -1/N sum_ij y_ij log softmax_j(s v_i . t_j), with y_i. = softmax over texts of the labels' similarity;
    L^{t->v} is the same over images, for each text. Images and texts may differ in number, and in their order.

    Args:
        image_embeddings: shape (n, d), any norm; v_i is each over its norm.
        text_embeddings: shape (m, d), any norm.
        similarity: shape (n, m), from ``label_similarity``.
        scale: 1 / tau, positive.

    Returns:
        A scalar in nats, with its graph.
    """
    images, texts = normalize(image_embeddings, dim=-1), normalize(text_embeddings, dim=-1)
    logits = scale * images @ texts.T
    of_images = -(softmax(similarity, dim=1) * log_softmax(logits, dim=1)).sum(dim=1).mean()
    of_texts = -(softmax(similarity, dim=0) * log_softmax(logits, dim=0)).sum(dim=0).mean()
    return (of_images + of_texts) / 2
