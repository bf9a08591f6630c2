from __future__ import annotations

import pytest
from tokenizers import processors

from fl_protocol.spec.tasks.instruction_tuning import Template
from site_agent.training.errors import ChatTemplateError
from site_agent.training.tasks.templates import AlpacaTemplate, ChatTemplate
from site_agent.training.tasks.text_tasks import TurnEncoder
from tests.support.tiny_model import make_tiny_tokenizer

pytestmark = pytest.mark.training


def test_alpaca_is_byte_for_byte_that_of_openfedllm() -> None:
    turn = AlpacaTemplate(make_tiny_tokenizer()).turn("What is {proteinuria}?", "Too much protein.")
    expected = (
        b"Below is an instruction that describes a task. Write a response that appropriately completes the request.\n"
        b"\n"
        b"### Instruction:\n"
        b"What is {proteinuria}? \n"
        b"\n"
        b"### Response: Too much protein.<|im_end|>"
    )
    assert (turn.prompt + turn.answer).encode() == expected
    # OpenFedLLM's marker of the response: what stands behind it carries loss.
    assert turn.prompt.endswith("\n### Response:")
    assert turn.answer == " Too much protein.<|im_end|>"


def test_alpaca_prompt_is_what_generation_continues() -> None:
    template = AlpacaTemplate(make_tiny_tokenizer())
    assert template.turn("q", "a").prompt == template.prompt("q")


def test_alpaca_needs_an_end_of_text() -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ChatTemplateError):
        AlpacaTemplate(tokenizer)


def test_alpaca_needs_no_chat_template() -> None:
    assert AlpacaTemplate(make_tiny_tokenizer(chat_template=None)).prompt("q")


def test_chat_is_byte_for_byte_the_models_own() -> None:
    turn = ChatTemplate(make_tiny_tokenizer()).turn("q", "a")
    assert turn.prompt == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert turn.answer == "a<|im_end|>"


def test_chat_needs_a_chat_template() -> None:
    with pytest.raises(ChatTemplateError):
        ChatTemplate(make_tiny_tokenizer(chat_template=None))


@pytest.mark.parametrize("has_habit", [True, False])
def test_beginning_of_text_stands_once_where_the_tokenizer_puts_it(has_habit: bool) -> None:
    tokenizer = make_tiny_tokenizer()
    bos = tokenizer.bos_token_id
    if has_habit:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
        )
    prompts = {name: TurnEncoder(tokenizer, name, max_length=500).prompt_ids("ab") for name in Template}
    alpaca = AlpacaTemplate(tokenizer).prompt("ab")
    # The tokenizer has one token a byte.
    assert len(prompts[Template.ALPACA]) == len(alpaca.encode()) + has_habit
    assert (prompts[Template.ALPACA][0] == bos) is has_habit
    assert prompts[Template.CHAT].count(bos) == 2


def test_turn_shows_nothing_of_itself() -> None:
    assert repr(ChatTemplate(make_tiny_tokenizer()).turn("secret", "secret")) == "Turn(...)"
