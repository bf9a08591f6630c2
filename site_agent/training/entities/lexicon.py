"""Labels by a lexicon: a class is spoken of where one of its terms stands in a text, and denied where a word denies it.

Source of the rule of denial: Chapman et al., *A Simple Algorithm for Identifying Negated Findings and Diseases in
Discharge Summaries*, Journal of Biomedical Informatics 34 (2001): a cue denies the terms that follow it, up to the end
of the clause or a few words on; a few cues deny what stands before them. The cues here are our own short list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

REACH_WORDS = 6
"""How many words a cue reaches."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[.;:!?,]")
_ENDS_CLAUSE = frozenset({".", ";", ":", "!", "?", "but", "however", "although", "except"})
_CUES_BEFORE = (
    ("no",), ("not",), ("without",), ("denies",), ("denied",), ("absence", "of"), ("absent",), ("negative", "for"),
    ("free", "of"), ("rule", "out"), ("ruled", "out"), ("rules", "out"), ("never",), ("neither",), ("nor",),
)  # fmt: skip
_CUES_BEHIND = (("is", "absent"), ("are", "absent"), ("was", "absent"), ("were", "absent"), ("not", "seen"),
                ("not", "present"), ("was", "ruled", "out"), ("were", "ruled", "out"), ("unlikely",))  # fmt: skip
_NO_CUE = (("not", "only"), ("no", "increase"), ("no", "change"), ("not", "certain"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """A term in a text, by its words: from ``first`` up to and without ``end``."""

    first: int
    end: int
    class_index: int


class LexiconLabeller:
    """See ``EntityLabeller``. Terms are compared by their words, whatever their case; the longest term wins."""

    def __init__(self, terms_of_class: Sequence[Sequence[str]]) -> None:
        """Read the lexicon: for each class its terms."""
        self._n_classes = len(terms_of_class)
        self._by_first: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        for number, terms in enumerate(terms_of_class):
            for term in terms:
                words = tuple(_words(term))
                if words:
                    self._by_first.setdefault(words[0], []).append((words, number))
        for entries in self._by_first.values():
            entries.sort(key=lambda entry: -len(entry[0]))

    def label(self, text: str) -> tuple[int, ...]:
        """See ``EntityLabeller``. A class that a text both affirms and denies is affirmed."""
        words = _words(text)
        labels = [0] * self._n_classes
        for mention in self._mentions(words):
            if labels[mention.class_index] != 1:
                labels[mention.class_index] = -1 if _is_denied(words, mention) else 1
        return tuple(labels)

    def _mentions(self, words: Sequence[str]) -> Iterator[Mention]:
        """Terms from left to right; several classes may share a term, and no two terms overlap otherwise."""
        place = 0
        while place < len(words):
            longest = 0
            for term, number in self._by_first.get(words[place], ()):
                if len(term) >= longest and tuple(words[place : place + len(term)]) == term:
                    longest = len(term)
                    yield Mention(first=place, end=place + len(term), class_index=number)
            place += max(longest, 1)


def lexicon_labeller(terms: Mapping[str, Sequence[str]]) -> LexiconLabeller:
    """The labeller of a mapping from class to terms, in its order."""
    return LexiconLabeller(list(terms.values()))


def _words(text: str) -> list[str]:
    """Lower-case words and the marks that end a clause. A plural s is no other word: cells is cell."""
    return [_singular(found.lower()) for found in _WORD.findall(text)]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "is", "us")) else word


def _is_denied(words: Sequence[str], mention: Mention) -> bool:
    before = _back_to_clause(words, mention.first)
    if any(_stands_in(before, cue) for cue in _singulars(_CUES_BEFORE)):
        return True
    behind = _on_to_clause(words, mention.end)
    return any(_stands_in(behind[: REACH_WORDS - 2], cue) for cue in _singulars(_CUES_BEHIND))


def _back_to_clause(words: Sequence[str], first: int) -> list[str]:
    """The words of the same clause that reach a term from before it."""
    start = first
    while start > 0 and first - start < REACH_WORDS and words[start - 1] not in _ENDS_CLAUSE:
        start -= 1
    return list(words[start:first])


def _on_to_clause(words: Sequence[str], end: int) -> list[str]:
    stop = end
    while stop < len(words) and stop - end < REACH_WORDS and words[stop] not in _ENDS_CLAUSE and words[stop] != ",":
        stop += 1
    return list(words[end:stop])


def _stands_in(words: Sequence[str], cue: Sequence[str]) -> bool:
    n = len(cue)
    for place in range(len(words) - n + 1):
        if tuple(words[place : place + n]) == tuple(cue):
            following = tuple(words[place : place + 2])
            if following not in _singulars(_NO_CUE):
                return True
    return False


def _singulars(cues: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Cues in the form that words of a text have here."""
    return tuple(tuple(_singular(word) for word in cue) for cue in cues)
