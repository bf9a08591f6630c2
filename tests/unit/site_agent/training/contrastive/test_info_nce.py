"""CLIP's loss equals its definition, written again in numpy's float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from site_agent.training.contrastive.info_nce import diagonal_targets, same_class_targets, symmetric_info_nce

pytestmark = pytest.mark.training


def numpy_loss(images: np.ndarray, texts: np.ndarray, scale: float, targets: np.ndarray) -> float:
    n = len(images)
    cosines = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in texts] for a in images])
    total = 0.0
    for i in range(n):
        row, column = np.exp(scale * cosines[i]), np.exp(scale * cosines[:, i])
        total -= sum(targets[i, j] * np.log(row[j] / row.sum()) for j in range(n))
        total -= sum(targets[j, i] * np.log(column[j] / column.sum()) for j in range(n))
    return total / n / 2


@pytest.fixture
def pairs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    return rng.normal(size=(6, 5)), 3 * rng.normal(size=(6, 5))


def loss(images: np.ndarray, texts: np.ndarray, scale: float, targets: torch.Tensor) -> float:
    return float(symmetric_info_nce(torch.tensor(images), torch.tensor(texts), scale=scale, targets=targets))


def test_loss_on_the_diagonal_equals_the_definition(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    images, texts = pairs
    targets = diagonal_targets(6, like=torch.tensor(images))
    assert loss(images, texts, 14.3, targets) == pytest.approx(numpy_loss(images, texts, 14.3, np.eye(6)), rel=1e-12)


def test_loss_over_classes_shares_the_target_out(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    images, texts = pairs
    targets = same_class_targets(torch.tensor([0, 1, 0, 2, 0, 1]), like=torch.tensor(images))
    by_hand = np.zeros((6, 6))
    for group in ([0, 2, 4], [1, 5], [3]):
        for i in group:
            by_hand[i, group] = 1 / len(group)
    np.testing.assert_array_equal(targets.numpy(), by_hand)
    assert loss(images, texts, 3.0, targets) == pytest.approx(numpy_loss(images, texts, 3.0, by_hand), rel=1e-12)


def test_loss_of_perfect_pairs_tends_to_zero_and_of_one_direction_is_log_n() -> None:
    basis = torch.eye(4, dtype=torch.float64)
    targets = diagonal_targets(4, like=basis)
    # Each row: s for itself, 0 for three others.
    expected = np.log(1 + 3 * np.exp(-100.0))
    assert float(symmetric_info_nce(basis, basis, scale=100.0, targets=targets)) == pytest.approx(expected, abs=1e-15)
    same = torch.ones(4, 4, dtype=torch.float64)
    assert float(symmetric_info_nce(same, same, scale=100.0, targets=targets)) == pytest.approx(np.log(4))


def test_repeated_class_can_reach_its_least_loss_only_with_shared_targets() -> None:
    # Two pairs of one class have equal embeddings; the diagonal punishes that for ever, the class target does not.
    images = torch.eye(3, dtype=torch.float64)[[0, 0, 1]]
    diagonal = symmetric_info_nce(images, images, scale=50.0, targets=diagonal_targets(3, like=images))
    shared = same_class_targets(torch.tensor([0, 0, 1]), like=images)
    images.requires_grad_()
    of_class = symmetric_info_nce(images, images.detach(), scale=50.0, targets=shared)
    of_class.backward()
    assert float(diagonal) == pytest.approx(2 / 3 * np.log(2))
    # The entropy of the targets is the least that any embedding can reach; it is reached, so nothing pulls any more.
    assert of_class.item() == pytest.approx(2 / 3 * np.log(2))
    torch.testing.assert_close(images.grad, torch.zeros_like(images), atol=1e-15, rtol=0)


def test_order_of_the_pairs_does_not_matter(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    images, texts = pairs
    order = np.array([3, 0, 5, 1, 4, 2])
    targets = diagonal_targets(6, like=torch.tensor(images))
    assert loss(images[order], texts[order], 9.0, targets) == pytest.approx(loss(images, texts, 9.0, targets))
