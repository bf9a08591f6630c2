from __future__ import annotations

import pytest

from site_agent.training.collate import Example, pack_examples, pad_examples, shared_prompt_length

pytestmark = pytest.mark.training

FIRST = Example(prompt_ids=(1, 2, 3), completion_ids=(4, 5))
SECOND = Example(prompt_ids=(1, 2, 6, 7), completion_ids=(8,))


def test_row_is_the_shared_beginning_and_then_each_rest_at_its_own_positions() -> None:
    row = pack_examples([FIRST, SECOND])
    assert row.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3, 4]]
    # The places of 3 and 4 predict 4 and 5; the place of 7 predicts 8.
    assert row.predicting.tolist() == [2, 3, 6]
    assert row.labels.tolist() == [4, 5, 8]


def test_row_shows_each_token_its_own_past_and_no_other_example() -> None:
    visible = pack_examples([FIRST, SECOND]).visible.int().tolist()
    assert visible == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 1, 1, 1],
    ]


def test_row_without_sharing_holds_every_token() -> None:
    row = pack_examples([FIRST, SECOND], share_beginning=False)
    assert row.input_ids.tolist() == [[1, 2, 3, 4, 5, 1, 2, 6, 7, 8]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]]
    assert row.predicting.tolist() == [2, 3, 8]
    assert not row.visible[5:, :5].any()


def test_shared_beginning_never_takes_a_whole_prompt() -> None:
    twin = Example(prompt_ids=(1, 2, 3), completion_ids=(9,))
    assert shared_prompt_length([FIRST, twin]) == 2
    assert shared_prompt_length([FIRST]) == 2
    assert shared_prompt_length([Example(prompt_ids=(1,), completion_ids=(2,)), FIRST]) == 0


def test_padding_labels_completions_only() -> None:
    batch = pad_examples([FIRST, SECOND], pad_id=0)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 6, 7, 8]]
    assert batch.labels.tolist() == [[-100, -100, -100, 4, 5], [-100, -100, -100, -100, 8]]
    short = pad_examples([FIRST, Example(prompt_ids=(1,), completion_ids=(2,))], pad_id=0)
    assert short.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]


@pytest.mark.parametrize(("prompt", "completion"), [((), (1,)), ((1,), ())])
def test_example_without_a_part_is_refused(prompt: tuple[int, ...], completion: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="tokens"):
        Example(prompt_ids=prompt, completion_ids=completion)


def test_example_shows_no_token() -> None:
    assert repr(FIRST) == "Example(3+2 tokens)"
