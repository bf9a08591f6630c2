"""Language modelling: every token of a text carries loss, and so does its end.

The first token is predicted from the tokenizer's beginning-of-text token, or from its end-of-text token where it has no
other: as texts follow each other in pre-training. A text that is longer than ``max_length`` loses its end.
"""

from __future__ import annotations

from pathlib import Path

from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.training.causal_model import (
    Tokenizer,
    layout_without_weights,
    load_adapted,
    load_tokenizer,
)
from site_agent.training.collate import Example
from site_agent.training.device import Compute
from site_agent.training.errors import TextMarksMissingError
from site_agent.training.formats.text_files import PLAIN_TEXT_FORMATS
from site_agent.training.task_half import EncodedRecord, Fit, TaskHalf
from site_agent.training.tasks.completion_task import CompletionTask
from site_agent.training.text_records import PlainTextRecord


class TextEncoder:
    """Turns texts into examples of at most ``max_length`` tokens, the mark of the beginning among them."""

    def __init__(self, tokenizer: Tokenizer, *, max_length: int) -> None:
        """Keep the tokenizer and its marks.

        Raises:
            TextMarksMissingError: it has neither a beginning-of-text nor an end-of-text token.
        """
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._begin, self._end = text_marks(tokenizer)

    def encode(self, record: PlainTextRecord) -> EncodedRecord:
        """Tokenise one text; there is no example of one that gives no token, as of marks that the tokenizer drops."""
        ids = [*self._tokenizer.encode(record.text, add_special_tokens=False), *self._end]
        if not ids:
            return EncodedRecord(fit=Fit.NO_ROOM, example=None)
        room = self._max_length - 1
        example = Example(prompt_ids=(self._begin,), completion_ids=tuple(ids[:room]))
        return EncodedRecord(fit=Fit.WHOLE if len(ids) <= room else Fit.CUT, example=example)


def text_marks(tokenizer: Tokenizer) -> tuple[int, tuple[int, ...]]:
    """The token that stands before every text, and what stands behind it: the end-of-text token, if there is one.

    Raises:
        TextMarksMissingError: there is no token to begin with.
    """
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    first = end if begin is None else begin
    if first is None:
        raise TextMarksMissingError("the base model's tokenizer marks neither the beginning nor the end of a text")
    return first, () if end is None else (end,)


def load_text_task(folder: Path, spec: RunSpec, compute: Compute) -> CompletionTask:
    """Load the base and put the adapter on it.

    Raises:
        BaseModelInvalidError, TargetModulesUnknownError: as ``load_adapted``.
        TextMarksMissingError: the base's tokenizer has no token to begin a text with.
    """
    model = load_adapted(folder, spec, compute)
    return CompletionTask(model=model, encoder=TextEncoder(model.tokenizer, max_length=spec.local.max_length))


def text_layout(folder: Path, spec: RunSpec) -> AdapterLayout:
    """The adapter's layout, of a base whose tokenizer marks a text's beginning.

    Raises:
        BaseModelInvalidError, TargetModulesUnknownError: as ``layout_without_weights``.
        TextMarksMissingError: no site could train on this base.
    """
    text_marks(load_tokenizer(folder))
    return layout_without_weights(folder, spec)


LANGUAGE_MODELLING = TaskHalf(
    formats=frozenset(PLAIN_TEXT_FORMATS), load=load_text_task, layout_without_weights=text_layout, is_shared=True
)
"""The row of the table."""
