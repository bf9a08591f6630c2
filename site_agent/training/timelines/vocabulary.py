"""The codes that a model knows, and the tokens that stand for them. One file, ``vocab.txt``, is the whole of it.

Token ids are fixed: first the special tokens in the order of ``SPECIAL_TOKENS``, then the codes in the order of the
file. The file holds the codes alone, one a line, UTF-8, each line ended by a line feed; its SHA-256 is what a RunSpec
names (``task.vocabulary_sha256``), so that a model's shape and the meaning of its rows are approved together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from site_agent.training.errors import VocabularyInvalidError
from site_agent.training.timelines.rows import MAX_TEXT, Sex

VOCABULARY_FILE = "vocab.txt"
MAX_CODES = 1_000_000

PAD = "<PAD>"
SEP = "<SEP>"
SEX_TOKENS: Mapping[Sex, str] = {sex: f"<SEX:{sex.value}>" for sex in Sex}
OLDEST_DECADE = 11
AGE_TOKENS = tuple(f"<AGE:{10 * decade}>" for decade in range(OLDEST_DECADE + 1))
"""One a decade of age in completed years; the last stands for 110 and more, the first also for days before birth."""
SPECIAL_TOKENS = (PAD, SEP, *SEX_TOKENS.values(), *AGE_TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Codes and their token ids.

    Invariant: codes are distinct printable texts, none of them a special token, and there is at least one.
    """

    codes: tuple[str, ...]
    id_of_code: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the invariant.

        Raises:
            VocabularyInvalidError: it does not hold; the facts name the line.
        """
        if not 0 < len(self.codes) <= MAX_CODES:
            raise VocabularyInvalidError("a vocabulary has 1 to a million codes", codes=len(self.codes))
        ids: dict[str, int] = {}
        specials = frozenset(SPECIAL_TOKENS)
        for line, code in enumerate(self.codes, start=1):
            if not code.strip() or code != code.strip() or len(code) > MAX_TEXT or not code.isprintable():
                raise VocabularyInvalidError("a code is a printable text without blanks around it", line=line)
            if code in ids or code in specials:
                raise VocabularyInvalidError("a code is there twice, or is a special token", line=line)
            ids[code] = len(SPECIAL_TOKENS) + line - 1
        object.__setattr__(self, "id_of_code", ids)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every token, at the place of its id."""
        return (*SPECIAL_TOKENS, *self.codes)

    @property
    def first_code_id(self) -> int:
        """The id of the first code; all from there on are codes."""
        return len(SPECIAL_TOKENS)

    def to_bytes(self) -> bytes:
        """The bytes of ``vocab.txt``."""
        return "".join(f"{code}\n" for code in self.codes).encode()

    @property
    def sha256(self) -> str:
        """Of ``to_bytes``: what a RunSpec names."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def codes_from_bytes(data: bytes) -> tuple[str, ...]:
    """The lines of a list of codes.

    Raises:
        VocabularyInvalidError: it is not UTF-8 text of lines that each end in a line feed.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise VocabularyInvalidError("a list of codes is UTF-8 text") from None
    if not text.endswith("\n"):
        raise VocabularyInvalidError("each line of a list of codes ends in a line feed")
    return tuple(text[:-1].split("\n"))


def read_vocabulary(path: Path) -> Vocabulary:
    """Read ``vocab.txt``.

    Raises:
        VocabularyInvalidError: it cannot be read or is none.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VocabularyInvalidError("the vocabulary cannot be read", reason=type(error).__name__) from error
    return Vocabulary(codes=codes_from_bytes(data))


def vocabulary_of(sequences: Iterable[Iterable[str]], *, min_patients: int = 1) -> Vocabulary:
    """The codes that at least so many sequences have, in the order of their texts. For one site, and for oracles.

    Raises:
        VocabularyInvalidError: no code is left.
    """
    counts: dict[str, int] = {}
    for sequence in sequences:
        for code in set(sequence):
            counts[code] = counts.get(code, 0) + 1
    return Vocabulary(codes=tuple(sorted(code for code, count in counts.items() if count >= min_patients)))


def age_token(*, birth_day: int, day: int) -> str:
    """The token of the decade of a patient's age in completed years on a day."""
    born, then = date.fromordinal(birth_day), date.fromordinal(day)
    years = then.year - born.year - ((then.month, then.day) < (born.month, born.day))
    return AGE_TOKENS[min(max(years // 10, 0), OLDEST_DECADE)]
