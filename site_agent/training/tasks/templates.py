"""How a question and its answer become text: the model's own chat template, or Alpaca's.

Knows no record and no weights. Every template gives two texts, the prompt and the answer to it: they are tokenised
apart, so that training sees the prompt as generation will, and only the answer carries loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from site_agent.training.causal_model import Tokenizer
from site_agent.training.errors import ChatTemplateError

ALPACA_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction} \n\n### Response:"
)
"""As OpenFedLLM has it (``utils/template.py``): a space stands behind the instruction, none behind the marker."""

ALPACA_ANSWER = " {response}{eos}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Turn:
    """A prompt and its answer as the model is to see them. Safety: its repr shows nothing of them."""

    prompt: str
    answer: str

    def __repr__(self) -> str:
        """Nothing of the texts."""
        return "Turn(...)"


class TextTemplate(Protocol):
    """Makes text of a question and an answer.

    Attributes:
        wants_bos: whether the tokenizer is to put its beginning-of-text token before a prompt, if that is its habit.
    """

    wants_bos: ClassVar[bool]

    def prompt(self, question: str) -> str:
        """The question as the text that the model is to continue.

        Raises:
            ChatTemplateError: the template cannot render it.
        """
        ...

    def turn(self, question: str, answer: str) -> Turn:
        """The question with an answer, which ends where generation stops.

        Raises:
            ChatTemplateError: the template cannot render them.
        """
        ...


class ChatTemplate:
    """The model's own chat template, which writes every mark itself."""

    wants_bos: ClassVar[bool] = False

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Keep the tokenizer.

        Raises:
            ChatTemplateError: it has no chat template.
        """
        if not tokenizer.chat_template:
            raise ChatTemplateError("the base model's tokenizer has no chat template")
        self._tokenizer = tokenizer

    def prompt(self, question: str) -> str:
        """See ``TextTemplate``."""
        return self._render([{"role": "user", "content": question}], add_generation_prompt=True)

    def turn(self, question: str, answer: str) -> Turn:
        """See ``TextTemplate``. What the template writes after the end of the turn is left out."""
        prompt = self.prompt(question)
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        whole = self._render(turns, add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise ChatTemplateError("the chat template does not begin an answered turn with its own prompt")
        answered, end = whole[len(prompt) :], self._tokenizer.eos_token
        place = answered.rfind(end) if end else -1
        return Turn(prompt=prompt, answer=answered if end is None or place < 0 else answered[: place + len(end)])

    def _render(self, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError  # jinja2 renders chat templates; it comes with transformers

        try:
            return self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            message = "the chat template cannot render a user's turn and an answer"
            raise ChatTemplateError(message, reason=type(error).__name__) from None


class AlpacaTemplate:
    """Alpaca's form without an input, for bases that know no chat. Any tokenizer with an end-of-text token will do."""

    wants_bos: ClassVar[bool] = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Keep how the tokenizer marks a text's end.

        Raises:
            ChatTemplateError: it does not: a model could not learn where an answer ends.
        """
        if not tokenizer.eos_token:
            raise ChatTemplateError("the base model's tokenizer has no end-of-text token, which this template needs")
        self._eos = tokenizer.eos_token

    def prompt(self, question: str) -> str:
        """See ``TextTemplate``."""
        return ALPACA_PROMPT.format(instruction=question)

    def turn(self, question: str, answer: str) -> Turn:
        """See ``TextTemplate``."""
        return Turn(prompt=self.prompt(question), answer=ALPACA_ANSWER.format(response=answer, eos=self._eos))
