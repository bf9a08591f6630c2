"""A timeline as the tokens of a causal model, with the positions that carry loss. Knows no tensors.

    [<SEX:x>] [<AGE:d>] <SEP> code ... [<AGE:d'>] code ...

* ``<SEX:x>`` where the sex is known; ``<AGE:d>`` of the first code's day where the day of birth is;
* ``<SEP>`` always, once: it ends what is known of the person, and predicts the first code;
* another ``<AGE:d'>`` before the first code of each later decade of life, where the day of birth is known.

Only codes carry loss: special tokens follow from the person and the calendar, and are not to be learned. A code that
the vocabulary does not know is left out, and ``min_tokens`` counts what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.spec.tasks.concept_timeline import Occurrences
from site_agent.training.task_half import EncodedRecord, Fit
from site_agent.training.timelines.timeline import Timeline, first_occurrences
from site_agent.training.timelines.vocabulary import PAD, SEP, SEX_TOKENS, SPECIAL_TOKENS, Vocabulary, age_token

PAD_ID = SPECIAL_TOKENS.index(PAD)
_ID_OF_SPECIAL = {token: index for index, token in enumerate(SPECIAL_TOKENS)}

MIN_TOKENS = 5
"""MedGPT leaves patients with fewer codes out."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TimelineExample:
    """One encoded timeline. Safety: its repr shows no token.

    Invariant: ``targets`` are the places of the codes, rising, none of them 0; ``days`` has one entry for each of them.

    Attributes:
        token_ids: the whole sequence.
        targets: places of codes: each is predicted from everything before it.
        days: of each code, as ``Event.day``.
    """

    token_ids: tuple[int, ...]
    targets: tuple[int, ...]
    days: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the invariant."""
        if not self.targets or self.targets[0] < 1 or len(self.targets) != len(self.days):
            message = "an example has codes behind a first token, and a day for each"
            raise ValueError(message)

    def __repr__(self) -> str:
        """The size alone."""
        return f"TimelineExample({len(self.targets)} of {len(self.token_ids)} tokens)"

    @property
    def n_tokens(self) -> int:
        """The length of the sequence."""
        return len(self.token_ids)

    @property
    def n_units(self) -> int:
        """How many tokens carry loss."""
        return len(self.targets)

    @property
    def code_ids(self) -> tuple[int, ...]:
        """The codes alone."""
        return tuple(self.token_ids[place] for place in self.targets)


class TimelineEncoder:
    """Turns timelines into examples of one vocabulary."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        max_length: int,
        min_tokens: int = MIN_TOKENS,
        occurrences: Occurrences = Occurrences.FIRST,
    ) -> None:
        """Keep what is needed.

        Args:
            vocabulary: codes that it lacks are left out.
            max_length: tokens of a sequence, special ones included; at least 4, so that one code always fits.
            min_tokens: codes that a patient must have; at least 1.
            occurrences: whether a code counts the first time only.
        """
        self._vocabulary = vocabulary
        self._max_length = max_length
        self._min_tokens = min_tokens
        self._occurrences = occurrences

    def encode(self, timeline: Timeline) -> EncodedRecord:
        """The example of one patient; none (``NO_ROOM``) where it has too few known codes, or no room for one."""
        if self._occurrences is Occurrences.FIRST:
            timeline = first_occurrences(timeline)
        ids = self._vocabulary.id_of_code
        known = [(ids[code], day) for code, day in zip(timeline.codes, timeline.days, strict=True) if code in ids]
        if len(known) < max(self._min_tokens, 1):
            return EncodedRecord(fit=Fit.NO_ROOM, example=None)
        tokens, last_age = self._head(timeline, known[0][1])
        targets: list[int] = []
        days: list[int] = []
        fit = Fit.WHOLE
        for code_id, day in known:
            age = self._age(timeline, day)
            ahead = [] if age is None or age == last_age else [age]
            if len(tokens) + len(ahead) + 1 > self._max_length:
                fit = Fit.CUT
                break
            tokens.extend(ahead)
            last_age = age
            targets.append(len(tokens))
            days.append(day)
            tokens.append(code_id)
        if not targets:
            return EncodedRecord(fit=Fit.NO_ROOM, example=None)
        example = TimelineExample(token_ids=tuple(tokens), targets=tuple(targets), days=tuple(days))
        return EncodedRecord(fit=fit, example=example)

    def _head(self, timeline: Timeline, first_day: int) -> tuple[list[int], int | None]:
        """What is known of the person, and the age that was said."""
        sex = timeline.demographics.sex
        head = [] if sex is None else [_ID_OF_SPECIAL[SEX_TOKENS[sex]]]
        age = self._age(timeline, first_day)
        head += [] if age is None else [age]
        return [*head, _ID_OF_SPECIAL[SEP]], age

    @staticmethod
    def _age(timeline: Timeline, day: int) -> int | None:
        birth = timeline.demographics.birth_day
        return None if birth is None else _ID_OF_SPECIAL[age_token(birth_day=birth, day=day)]
