"""Instruction tuning: a record becomes a chat turn by the model's own template, and only the answer carries loss.

Knows no weights. Prompt and completion are tokenised apart, so that training sees the prompt as generation will.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np

from site_agent.training.collate import Example
from site_agent.training.data import Record
from site_agent.training.errors import ChatTemplateError, NoUsableRecordsError


class Tokenizer(Protocol):
    """What this task needs of a tokenizer."""

    chat_template: str | None
    eos_token: str | None

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """The conversation as text."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The text as tokens."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Tokens as text."""
        ...


class Fit(StrEnum):
    """How a record fits into ``max_length`` tokens."""

    WHOLE = "whole"
    COMPLETION_CUT = "completion-cut"
    NO_ROOM = "no-room"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRecord:
    """A record's example and how it fits. Invariant: there is no example exactly when there is no room for one."""

    fit: Fit
    example: Example | None


class ChatEncoder:
    """Turns records into examples."""

    def __init__(self, tokenizer: Tokenizer, *, max_length: int) -> None:
        """Keep the tokenizer.

        Raises:
            ChatTemplateError: it has no chat template.
        """
        if not tokenizer.chat_template:
            raise ChatTemplateError("the base model's tokenizer has no chat template")
        self._tokenizer = tokenizer
        self._max_length = max_length

    def encode(self, record: Record) -> EncodedRecord:
        """Tokenise one record; a completion that is too long loses its end, a prompt is never cut.

        Raises:
            ChatTemplateError: the template renders a conversation that does not begin with its own prompt.
        """
        prompt = render_prompt(self._tokenizer, record.prompt)
        turns = [{"role": "user", "content": record.prompt}, {"role": "assistant", "content": record.completion}]
        whole = render_conversation(self._tokenizer, turns, add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise ChatTemplateError("the chat template does not begin an answered turn with its own prompt")
        prompt_ids = self._tokenizer.encode(prompt, add_special_tokens=False)
        answer = self._up_to_end_of_turn(whole[len(prompt) :])
        completion_ids = self._tokenizer.encode(answer, add_special_tokens=False)
        room = self._max_length - len(prompt_ids)
        if room < 1 or not completion_ids:
            return EncodedRecord(fit=Fit.NO_ROOM, example=None)
        example = Example(prompt_ids=tuple(prompt_ids), completion_ids=tuple(completion_ids[:room]))
        return EncodedRecord(fit=Fit.WHOLE if len(completion_ids) <= room else Fit.COMPLETION_CUT, example=example)

    def _up_to_end_of_turn(self, answer: str) -> str:
        """Leave out what the template writes after the end of the turn: generation stops there."""
        end = self._tokenizer.eos_token
        place = answer.rfind(end) if end else -1
        return answer if end is None or place < 0 else answer[: place + len(end)]


@dataclass(slots=True, kw_only=True)
class FitCounts:
    """How many records were looked at, by how they fitted; what was left out is counted, never silent."""

    whole: int = 0
    completion_cut: int = 0
    no_room: int = 0

    def count(self, fit: Fit) -> None:
        """Count one record."""
        match fit:
            case Fit.WHOLE:
                self.whole += 1
            case Fit.COMPLETION_CUT:
                self.completion_cut += 1
            case Fit.NO_ROOM:
                self.no_room += 1


def encode_records(records: Iterable[Record], encoder: ChatEncoder, counts: FitCounts) -> Iterator[Example]:
    """The examples of all records that have room, in order."""
    for record in records:
        encoded = encoder.encode(record)
        counts.count(encoded.fit)
        if encoded.example is not None:
            yield encoded.example


def sample_examples(
    records: tuple[Record, ...], encoder: ChatEncoder, *, n_examples: int, seed: int, counts: FitCounts
) -> list[Example]:
    """Draw a round's examples: without replacement while records last, then all of them again in another order.

    Args:
        records: those to train on.
        encoder: turns them into examples.
        n_examples: how many the round needs.
        seed: uint64; the same seed draws the same examples.
        counts: where records that did not fit are counted.

    Raises:
        NoUsableRecordsError: no record has room for a completion, or there is none.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    examples: list[Example] = []
    while len(examples) < n_examples:
        order = generator.permutation(len(records))
        before = len(examples)
        for example in encode_records((records[place] for place in order), encoder, counts):
            examples.append(example)
            if len(examples) == n_examples:
                return examples
        if len(examples) == before:
            raise NoUsableRecordsError("no record has room for a completion within max_length", records=len(records))
    return examples


def render_prompt(tokenizer: Tokenizer, question: str) -> str:
    """A question as the text that the model is to continue.

    Raises:
        ChatTemplateError: the template cannot render it.
    """
    turns = [{"role": "user", "content": question}]
    return render_conversation(tokenizer, turns, add_generation_prompt=True)


def render_conversation(tokenizer: Tokenizer, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """A conversation as text.

    Raises:
        ChatTemplateError: the template cannot render it.
    """
    from jinja2 import TemplateError  # jinja2 renders chat templates; it comes with transformers

    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        message = "the chat template cannot render a user's turn and an answer"
        raise ChatTemplateError(message, reason=type(error).__name__) from None
