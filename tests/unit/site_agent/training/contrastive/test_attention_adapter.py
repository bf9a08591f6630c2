"""The attention adapter equals its equation, written again in numpy's float64; so do its gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from site_agent.training.contrastive.attention_adapter import AttentionAdapter, n_attention_parameters

pytestmark = pytest.mark.training


def numpy_adapter(z: np.ndarray, W1: np.ndarray, b1: np.ndarray, W2: np.ndarray, b2: np.ndarray) -> np.ndarray:
    adapted = np.empty_like(z)
    for row, vector in enumerate(z):
        scores = W2 @ np.tanh(W1 @ vector + b1) + b2
        weights = np.exp(scores) / np.exp(scores).sum()
        adapted[row] = weights * vector
    return adapted


def filled(d: int, seed: int) -> tuple[AttentionAdapter, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    values = {"W1": rng.normal(size=(d, d)), "b1": rng.normal(size=d)}
    values |= {"W2": rng.normal(size=(d, d)), "b2": rng.normal(size=d)}
    adapter = AttentionAdapter(d).double()
    with torch.no_grad():
        for name, value in values.items():
            getattr(adapter, name).copy_(torch.from_numpy(value))
    return adapter, values


@pytest.mark.parametrize(("d", "expected"), [(512, 525_312), (384, 295_680), (1, 4)])
def test_parameter_count_is_that_of_the_paper(d: int, expected: int) -> None:
    assert n_attention_parameters(d) == expected
    if d < 512:
        assert sum(parameter.numel() for parameter in AttentionAdapter(d).parameters()) == expected


def test_adapted_embeddings_equal_the_equation() -> None:
    adapter, values = filled(5, seed=3)
    z = np.random.default_rng(4).normal(size=(7, 5))
    found = adapter(torch.from_numpy(z)).detach().numpy()
    np.testing.assert_allclose(found, numpy_adapter(z, **values), rtol=1e-13)


@pytest.mark.parametrize("name", ["W1", "b1", "W2", "b2"])
def test_gradients_equal_central_differences_of_the_equation(name: str) -> None:
    adapter, values = filled(4, seed=5)
    rng = np.random.default_rng(6)
    z, direction = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    (adapter(torch.from_numpy(z)) * torch.from_numpy(direction)).sum().backward()
    gradient, step = getattr(adapter, name).grad.numpy(), 1e-6
    for place in np.ndindex(values[name].shape):
        sums = []
        for sign in (1, -1):
            moved = {key: value.copy() for key, value in values.items()}
            moved[name][place] += sign * step
            sums.append((numpy_adapter(z, **moved) * direction).sum())
        assert gradient[place] == pytest.approx((sums[0] - sums[1]) / (2 * step), abs=1e-8)


def test_zero_second_layer_leaves_the_direction_of_an_embedding() -> None:
    adapter = AttentionAdapter(6)
    torch.nn.init.normal_(adapter.W1)
    z = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(adapter(z) * 6, z)
