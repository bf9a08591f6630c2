"""MedCLIP's loss equals its definition in both forms, written again in numpy's float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from site_agent.training.contrastive.info_nce import diagonal_targets, symmetric_info_nce
from site_agent.training.contrastive.semantic_matching import label_similarity, semantic_matching

pytestmark = pytest.mark.training

LABELS_OF_IMAGES = np.array([[1, 0, 0], [0, 1, -1], [1, 1, 0], [0, 0, 0]], dtype=np.float64)
LABELS_OF_TEXTS = np.array([[1, 0, 0], [0, 1, 0], [0, -1, 1], [1, 0, 0], [0, 0, 0]], dtype=np.float64)


def numpy_loss(v: np.ndarray, t: np.ndarray, l_v: np.ndarray, l_t: np.ndarray, scale: float, *, cosine: bool) -> float:
    n, m = len(v), len(t)
    s, logits = np.zeros((n, m)), np.zeros((n, m))
    for i in range(n):
        for j in range(m):
            s[i, j] = l_v[i] @ l_t[j]
            norms = np.linalg.norm(l_v[i]) * np.linalg.norm(l_t[j])
            if cosine:
                s[i, j] = s[i, j] / norms if norms else 0.0
            logits[i, j] = scale * (v[i] @ t[j]) / np.linalg.norm(v[i]) / np.linalg.norm(t[j])
    to_texts = to_images = 0.0
    for i in range(n):
        y, p = np.exp(s[i]) / np.exp(s[i]).sum(), np.exp(logits[i]) / np.exp(logits[i]).sum()
        to_texts -= (y * np.log(p)).sum() / n
    for j in range(m):
        y, p = np.exp(s[:, j]) / np.exp(s[:, j]).sum(), np.exp(logits[:, j]) / np.exp(logits[:, j]).sum()
        to_images -= (y * np.log(p)).sum() / m
    return (to_texts + to_images) / 2


@pytest.fixture
def embeddings() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(21)
    return rng.normal(size=(4, 6)), 2 * rng.normal(size=(5, 6))


def loss(v: np.ndarray, t: np.ndarray, l_v: np.ndarray, l_t: np.ndarray, scale: float, *, cosine: bool) -> torch.Tensor:
    similarity = label_similarity(torch.tensor(l_v), torch.tensor(l_t), is_cosine=cosine)
    return semantic_matching(torch.tensor(v), torch.tensor(t), similarity=similarity, scale=scale)


@pytest.mark.parametrize("cosine", [True, False])
def test_loss_equals_the_definition(embeddings: tuple[np.ndarray, np.ndarray], *, cosine: bool) -> None:
    v, t = embeddings
    expected = numpy_loss(v, t, LABELS_OF_IMAGES, LABELS_OF_TEXTS, 7.5, cosine=cosine)
    found = loss(v, t, LABELS_OF_IMAGES, LABELS_OF_TEXTS, 7.5, cosine=cosine)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_the_two_forms_differ_where_labels_have_several_entries() -> None:
    many, one = torch.tensor([[1.0, 1.0, -1.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(label_similarity(many, one, is_cosine=False), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(label_similarity(many, one, is_cosine=True), torch.tensor([[3.0**-0.5, 0.0]]))


@pytest.mark.parametrize("cosine", [True, False])
def test_order_of_images_and_of_texts_does_not_matter(
    embeddings: tuple[np.ndarray, np.ndarray], *, cosine: bool
) -> None:
    v, t = embeddings
    rows, columns = [2, 0, 3, 1], [4, 2, 0, 1, 3]
    moved = loss(v[rows], t[columns], LABELS_OF_IMAGES[rows], LABELS_OF_TEXTS[columns], 5.0, cosine=cosine)
    kept = loss(v, t, LABELS_OF_IMAGES, LABELS_OF_TEXTS, 5.0, cosine=cosine)
    assert float(moved) == pytest.approx(float(kept), rel=1e-13)


def test_gradient_moves_with_the_order(embeddings: tuple[np.ndarray, np.ndarray]) -> None:
    v, t = embeddings
    rows = [2, 0, 3, 1]
    gradients = []
    for order in (list(range(4)), rows):
        images = torch.tensor(v[order], requires_grad=True)
        similarity = label_similarity(
            torch.tensor(LABELS_OF_IMAGES[order]), torch.tensor(LABELS_OF_TEXTS), is_cosine=True
        )
        semantic_matching(images, torch.tensor(t), similarity=similarity, scale=5.0).backward()
        gradients.append(images.grad)
    torch.testing.assert_close(gradients[0][rows], gradients[1])


def test_labels_that_match_only_themselves_give_the_loss_of_clip() -> None:
    rng = np.random.default_rng(22)
    v, t = torch.tensor(rng.normal(size=(6, 4))), torch.tensor(rng.normal(size=(6, 4)))
    similarity = 800.0 * torch.eye(6, dtype=torch.float64)
    found = semantic_matching(v, t, similarity=similarity, scale=10.0)
    expected = symmetric_info_nce(v, t, scale=10.0, targets=diagonal_targets(6, like=v))
    assert float(found) == pytest.approx(float(expected), rel=1e-13)


def test_gradient_on_a_false_negative_is_smaller_than_that_of_clip() -> None:
    """The property of specification F-MEDCLIP (3), through the functions themselves, by finite differences."""
    rng = np.random.default_rng(23)
    texts = np.eye(4)[[0, 0, 1, 2]] + 0.05 * rng.normal(size=(4, 4))
    images = np.eye(4)[[0, 0, 1, 2]] + 0.05 * rng.normal(size=(4, 4))
    labels = torch.tensor(np.eye(3)[[0, 0, 1, 2]])

    def slope(step_towards: float, *, medclip: bool) -> float:
        moved = torch.tensor(texts)
        # Text 1 moves towards image 0 alone, at right angles to its own image 1.
        own = torch.tensor(images[1]) / np.linalg.norm(images[1])
        towards = torch.tensor(images[0]) - (torch.tensor(images[0]) @ own) * own
        moved[1] += step_towards * towards / towards.norm()
        if medclip:
            similarity = label_similarity(labels, labels, is_cosine=True)
            return float(semantic_matching(torch.tensor(images), moved, similarity=similarity, scale=4.0))
        targets = diagonal_targets(4, like=moved)
        return float(symmetric_info_nce(torch.tensor(images), moved, scale=4.0, targets=targets))

    step = 1e-5
    of_clip = (slope(step, medclip=False) - slope(-step, medclip=False)) / (2 * step)
    of_medclip = (slope(step, medclip=True) - slope(-step, medclip=True)) / (2 * step)
    assert of_clip > 0
    assert of_medclip < of_clip
