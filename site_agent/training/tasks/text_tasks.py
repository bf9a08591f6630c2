"""What the tasks on text share: a causal model with its adapter, and records that become prompt and completion.

Knows no weights. Prompt and completion are tokenised apart, so that training sees the prompt as generation will.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.tasks.instruction_tuning import Template
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.training.causal_model import Tokenizer, layout_without_weights, load_tokenizer
from site_agent.training.collate import Example
from site_agent.training.task_half import Fit
from site_agent.training.tasks.templates import AlpacaTemplate, ChatTemplate, TextTemplate

TEMPLATES: Mapping[Template, Callable[[Tokenizer], TextTemplate]] = {
    Template.CHAT: ChatTemplate,
    Template.ALPACA: AlpacaTemplate,
}
"""How each template is put on a tokenizer. Raises ChatTemplateError where the tokenizer lacks what it needs."""


class TurnEncoder:
    """Turns questions and answers into examples of at most ``max_length`` tokens."""

    def __init__(self, tokenizer: Tokenizer, template: Template, *, max_length: int) -> None:
        """Keep the tokenizer.

        Raises:
            ChatTemplateError: it lacks what the template needs.
        """
        self._tokenizer = tokenizer
        self._template = TEMPLATES[template](tokenizer)
        self._max_length = max_length

    def encode(self, question: str, answer: str) -> tuple[Fit, Example | None]:
        """Tokenise one turn; an answer that is too long loses its end, a prompt is never cut.

        Raises:
            ChatTemplateError: the template cannot render it.
        """
        turn = self._template.turn(question, answer)
        prompt_ids = self._tokens_of_prompt(turn.prompt)
        completion_ids = self._tokenizer.encode(turn.answer, add_special_tokens=False)
        room = self._max_length - len(prompt_ids)
        if room < 1 or not completion_ids:
            return Fit.NO_ROOM, None
        example = Example(prompt_ids=tuple(prompt_ids), completion_ids=tuple(completion_ids[:room]))
        return (Fit.WHOLE if len(completion_ids) <= room else Fit.CUT), example

    def prompt_ids(self, question: str) -> list[int]:
        """A question as the tokens that the model is to continue, however many.

        Raises:
            ChatTemplateError: the template cannot render it.
        """
        return self._tokens_of_prompt(self._template.prompt(question))

    def _tokens_of_prompt(self, prompt: str) -> list[int]:
        return [*self._begins_with(), *self._tokenizer.encode(prompt, add_special_tokens=False)]

    def _begins_with(self) -> list[int]:
        """The beginning-of-text token, where template and tokenizer want one."""
        bos = self._tokenizer.bos_token_id
        if not self._template.wants_bos or bos is None:
            return []
        has_habit = self._tokenizer.encode("a", add_special_tokens=True)[:1] == [bos]
        return [bos] if has_habit else []


def templated_layout(folder: Path, spec: RunSpec, template: Template) -> AdapterLayout:
    """The adapter's layout, of a base whose tokenizer has what the template needs.

    Raises:
        BaseModelInvalidError, TargetModulesUnknownError: as ``layout_without_weights``.
        ChatTemplateError: no site could train this template on this base.
    """
    TEMPLATES[template](load_tokenizer(folder))
    return layout_without_weights(folder, spec)
