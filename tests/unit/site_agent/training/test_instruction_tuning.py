from __future__ import annotations

import pytest

from site_agent.training.errors import ChatTemplateError, NoUsableRecordsError
from site_agent.training.formats.prompt_jsonl import PromptRecord
from site_agent.training.task_half import Fit
from site_agent.training.tasks.drawing import FitCounts, encode_records, sample_examples
from site_agent.training.tasks.instruction_tuning import PromptEncoder
from tests.support.tiny_model import make_tiny_tokenizer

pytestmark = pytest.mark.training

PROMPT = "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"


def record(name: str = "r", *, prompt: str = "What?", completion: str = "That.") -> PromptRecord:
    return PromptRecord(record_id=name, prompt=prompt, completion=completion, patient_id=None)


def text_of(tokenizer: object, ids: tuple[int, ...]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False)


def test_example_is_the_models_own_template_cut_at_the_answer() -> None:
    tokenizer = make_tiny_tokenizer()
    encoded = PromptEncoder(tokenizer, max_length=200).encode(record())
    assert encoded.fit is Fit.WHOLE
    assert text_of(tokenizer, encoded.example.prompt_ids) == PROMPT
    # The template's line break after the end of the turn is not learned: generation stops at the end of the turn.
    assert text_of(tokenizer, encoded.example.completion_ids) == "That.<|im_end|>"


def test_completion_that_is_too_long_loses_its_end_and_the_prompt_stays() -> None:
    tokenizer = make_tiny_tokenizer()
    whole = PromptEncoder(tokenizer, max_length=200).encode(record()).example
    encoded = PromptEncoder(tokenizer, max_length=len(whole.prompt_ids) + 2).encode(record())
    assert encoded.fit is Fit.CUT
    assert encoded.example.prompt_ids == whole.prompt_ids
    assert text_of(tokenizer, encoded.example.completion_ids) == "Th"


def test_prompt_that_leaves_no_room_is_left_out_and_counted() -> None:
    tokenizer = make_tiny_tokenizer()
    whole = PromptEncoder(tokenizer, max_length=200).encode(record()).example
    encoder = PromptEncoder(tokenizer, max_length=len(whole.prompt_ids))
    counts = FitCounts()
    examples = list(encode_records([record(), record(prompt="W?"), record(prompt="What" * 9)], encoder, counts))
    assert [text_of(tokenizer, one.completion_ids) for one in examples] == ["Tha"]
    assert (counts.whole, counts.cut, counts.no_room) == (0, 1, 2)


@pytest.mark.parametrize("template", [None, ""])
def test_tokenizer_without_a_template_is_refused(template: str | None) -> None:
    with pytest.raises(ChatTemplateError):
        PromptEncoder(make_tiny_tokenizer(chat_template=template), max_length=100)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('secret') }}",
        "{% for message in messages %}{{ message.content }}",
        "{{ messages | length }}{{ messages[0].content }}",
    ],
)
def test_template_that_cannot_be_used_is_refused_without_quoting_the_record(template: str) -> None:
    encoder = PromptEncoder(make_tiny_tokenizer(chat_template=template), max_length=100)
    with pytest.raises(ChatTemplateError) as caught:
        encoder.encode(record(prompt="secret"))
    assert "secret" not in str(caught.value)


def records(n_records: int) -> tuple[PromptRecord, ...]:
    return tuple(record(str(k), completion=f"c{k}") for k in range(n_records))


def test_sample_takes_each_record_once_before_any_twice() -> None:
    encoder = PromptEncoder(make_tiny_tokenizer(), max_length=200)
    examples = sample_examples(records(5), encoder, n_examples=12, seed=3, counts=FitCounts())
    drawn = [one.completion_ids for one in examples]
    assert len(set(drawn[:5])) == len(set(drawn[5:10])) == 5
    assert drawn[:5] != drawn[5:10]


def test_sample_is_the_seeds_alone() -> None:
    encoder = PromptEncoder(make_tiny_tokenizer(), max_length=200)
    draws = [
        sample_examples(records(50), encoder, n_examples=9, seed=seed, counts=FitCounts()) for seed in (1, 1, 2**64 - 1)
    ]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_sample_of_records_without_room_is_refused() -> None:
    encoder = PromptEncoder(make_tiny_tokenizer(), max_length=5)
    with pytest.raises(NoUsableRecordsError):
        sample_examples(records(5), encoder, n_examples=2, seed=3, counts=FitCounts())


def test_sample_of_no_records_is_refused() -> None:
    encoder = PromptEncoder(make_tiny_tokenizer(), max_length=200)
    with pytest.raises(NoUsableRecordsError):
        sample_examples((), encoder, n_examples=2, seed=3, counts=FitCounts())
