"""Classes from prompts and precision at k, on figures that were worked out by hand."""

from __future__ import annotations

import pytest
import torch

from site_agent.training.contrastive.zero_shot import Ensemble, class_logits, prompt_logits, retrieval_hits

pytestmark = pytest.mark.training


def test_prompt_logits_are_scaled_cosines() -> None:
    found = prompt_logits(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.5]]), scale=10.0)
    torch.testing.assert_close(found, torch.tensor([[6.0, 8.0]]))


def test_mean_and_largest_of_the_prompts_can_name_different_classes() -> None:
    logits = torch.tensor([[5.0, 1.0, 3.5, 3.5]])
    prompts_of_class = [[0, 1], [2, 3]]
    torch.testing.assert_close(
        class_logits(logits, prompts_of_class, ensemble=Ensemble.MEAN), torch.tensor([[3.0, 3.5]])
    )
    torch.testing.assert_close(
        class_logits(logits, prompts_of_class, ensemble=Ensemble.MAX), torch.tensor([[5.0, 3.5]])
    )


def test_classes_may_have_different_numbers_of_prompts() -> None:
    logits = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, -3.0]])
    found = class_logits(logits, [[2], [0, 1]], ensemble=Ensemble.MEAN)
    torch.testing.assert_close(found, torch.tensor([[6.0, 1.5], [-3.0, 0.0]]))


def test_hits_count_relevant_columns_among_the_k_best() -> None:
    logits = torch.tensor([[0.9, 0.1, 0.8, 0.7], [0.2, 0.6, 0.5, 0.4]])
    relevant = torch.tensor([[True, True, False, True], [True, False, True, True]])
    assert retrieval_hits(logits, relevant, k=1) == 1
    assert retrieval_hits(logits, relevant, k=2) == 1 + 1
    assert retrieval_hits(logits, relevant, k=4) == 3 + 3


def test_equal_logits_rank_by_column() -> None:
    logits, relevant = torch.zeros(1, 3), torch.tensor([[True, False, False]])
    assert retrieval_hits(logits, relevant, k=1) == 1
    assert retrieval_hits(logits, relevant.flip(1), k=1) == 0


@pytest.mark.parametrize("k", [0, 4])
def test_k_beyond_the_columns_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="precision"):
        retrieval_hits(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), k=k)
