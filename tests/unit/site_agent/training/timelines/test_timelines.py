"""Rows to timelines to tokens: the same for any order of rows, and exactly what the modules say."""

from __future__ import annotations

import hashlib
import random
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.spec.tasks.concept_timeline import Occurrences
from site_agent.training.errors import DatasetMalformedError, VocabularyInvalidError
from site_agent.training.task_half import Fit
from site_agent.training.timelines import grouping
from site_agent.training.timelines.encoding import TimelineEncoder, TimelineExample
from site_agent.training.timelines.grouping import group_by_patient
from site_agent.training.timelines.rows import Event, Person, Row, Sex
from site_agent.training.timelines.timeline import (
    Timeline,
    first_occurrences,
    timeline_from_history,
    timelines_from_histories,
)
from site_agent.training.timelines.vocabulary import (
    SPECIAL_TOKENS,
    Vocabulary,
    age_token,
    codes_from_bytes,
    read_vocabulary,
    vocabulary_of,
)


def row(patient: str, day: int, code: str, *, second: int = 0, source: str = "", place: int = 1) -> Row:
    event = Event(day=day, second=second, source=source, code=code)
    return Row(patient_id=patient, file="f", place=place, event=event)


def person_row(patient: str, person: Person, place: int = 1) -> Row:
    return Row(patient_id=patient, file="f", place=place, person=person)


rows_of_patients = st.lists(
    st.builds(
        row,
        st.sampled_from(["a", "b", "ä", "c\u2003d"]),
        st.integers(700_000, 700_005),
        st.sampled_from(["x", "y", "z", "é"]),
        second=st.integers(0, 3),
        source=st.sampled_from(["", "s", "t"]),
    ),
    max_size=60,
)


@given(rows=rows_of_patients, held=st.integers(1, 20), seed=st.integers(0, 99))
def test_grouping_gives_each_patient_s_sorted_events_whatever_is_held_and_in_which_order(
    rows: list[Row], held: int, seed: int
) -> None:
    expected: dict[str, list[tuple[int, int, str, str]]] = {}
    for item in rows:
        assert item.event is not None
        event = item.event
        expected.setdefault(item.patient_id, []).append((event.day, event.second, event.source, event.code))
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    histories = list(group_by_patient(shuffled, max_rows_in_memory=held))
    assert [history.patient_id for history in histories] == sorted(expected)
    for history in histories:
        found = [(event.day, event.second, event.source, event.code) for event in history.events]
        assert found == sorted(expected[history.patient_id])


def test_grouping_merges_many_files_and_leaves_none_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "_MAX_FILES", 3)
    rows = [row(f"p{number % 7}", 700_000 + number, "x") for number in range(100)]
    random.Random(1).shuffle(rows)
    histories = group_by_patient(rows, max_rows_in_memory=4, folder=tmp_path)
    first = next(histories)
    assert [event.day for event in first.events] == list(range(700_000, 700_100, 7))
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(list(folder.iterdir())) <= 3
    histories.close()
    assert list(tmp_path.iterdir()) == []


def test_grouping_joins_what_rows_say_of_a_person_and_refuses_a_contradiction() -> None:
    rows = [
        person_row("p", Person(sex=Sex.FEMALE)),
        person_row("p", Person(birth_day=5)),
        person_row("p", Person(birth_day=5, sex=Sex.FEMALE), place=3),
    ]
    (history,) = group_by_patient(rows)
    assert history.person == Person(birth_day=5, sex=Sex.FEMALE)
    with pytest.raises(DatasetMalformedError) as caught:
        list(group_by_patient([*rows, person_row("p", Person(birth_day=6), place=9)]))
    assert caught.value.facts == {
        "file": "f",
        "record": 9,
        "field": "birth_date",
        "fault": "contradicts-an-earlier-row",
    }


def history_of(*events: tuple[int, int, str, str]) -> grouping.PatientHistory:
    rows = [row("p", day, code, second=second, source=source) for day, second, source, code in events]
    (history,) = group_by_patient(rows)
    return history


def test_timeline_keeps_first_occurrences_and_orders_ties_by_source_and_code() -> None:
    history = history_of(
        (2, 0, "", "A"), (1, 9, "b", "B"), (1, 9, "a", "Z"), (1, 9, "b", "A"), (1, 0, "z", "Y"), (3, 0, "", "B")
    )
    timeline = first_occurrences(timeline_from_history(history))
    assert timeline.codes == ("Y", "Z", "A", "B")
    assert timeline.days == (1, 1, 1, 1)


def test_timeline_of_all_occurrences_has_a_code_once_a_day() -> None:
    history = history_of((1, 0, "", "A"), (1, 5, "", "A"), (1, 7, "", "B"), (2, 0, "", "A"))
    timeline = timeline_from_history(history)
    assert list(zip(timeline.days, timeline.codes, strict=True)) == [(1, "A"), (1, "B"), (2, "A")]


def test_timeline_of_a_patient_without_events_is_left_out() -> None:
    histories = group_by_patient([person_row("p", Person(sex=Sex.MALE)), row("q", 1, "A")])
    assert [timeline.patient_id for timeline in timelines_from_histories(histories)] == ["q"]


def test_timeline_and_history_show_nothing_of_the_record() -> None:
    history = history_of((1, 0, "src", "SECRET"))
    assert "SECRET" not in repr(history) + repr(history.events) + repr(timeline_from_history(history))


# --- vocabulary ---


def test_vocabulary_bytes_and_ids_are_those_of_the_file(tmp_path: Path) -> None:
    vocabulary = Vocabulary(codes=("b", "a b", "ä"))
    data = b"b\na b\n\xc3\xa4\n"
    assert vocabulary.to_bytes() == data
    assert vocabulary.sha256 == hashlib.sha256(data).hexdigest()
    (tmp_path / "vocab.txt").write_bytes(data)
    assert read_vocabulary(tmp_path / "vocab.txt") == vocabulary
    first = len(SPECIAL_TOKENS)
    assert vocabulary.first_code_id == first
    assert dict(vocabulary.id_of_code) == {"b": first, "a b": first + 1, "ä": first + 2}
    assert vocabulary.tokens[first + 1] == "a b"
    assert SPECIAL_TOKENS[:5] == ("<PAD>", "<SEP>", "<SEX:female>", "<SEX:male>", "<SEX:other>")
    assert SPECIAL_TOKENS[5:] == tuple(f"<AGE:{age}>" for age in range(0, 120, 10))


@pytest.mark.parametrize("codes", [(), ("a", "a"), ("<SEP>",), ("a\tb",), (" a",), ("",), ("a" * 201,)])
def test_vocabulary_that_is_none_is_refused(codes: tuple[str, ...]) -> None:
    with pytest.raises(VocabularyInvalidError):
        Vocabulary(codes=codes)


@pytest.mark.parametrize("data", [b"", b"a", b"\xff\n"])
def test_vocabulary_bytes_that_are_no_lines_are_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(VocabularyInvalidError):
        codes_from_bytes(data)
    with pytest.raises(VocabularyInvalidError):
        read_vocabulary(tmp_path / "nowhere")


def test_vocabulary_of_sequences_counts_patients_not_events() -> None:
    assert vocabulary_of([["b", "b"], ["a", "b"], ["a"], ["c"]], min_patients=2).codes == ("a", "b")


@pytest.mark.parametrize(
    ("birth", "day", "token"),
    [
        ("1950-06-15", "1960-06-14", "<AGE:0>"),
        ("1950-06-15", "1960-06-15", "<AGE:10>"),
        ("1952-02-29", "1962-02-28", "<AGE:0>"),
        ("1952-02-29", "1962-03-01", "<AGE:10>"),
        ("1950-06-15", "1949-01-01", "<AGE:0>"),
        ("1850-06-15", "2000-01-01", "<AGE:110>"),
    ],
)
def test_age_token_is_the_decade_of_completed_years(birth: str, day: str, token: str) -> None:
    found = age_token(birth_day=date.fromisoformat(birth).toordinal(), day=date.fromisoformat(day).toordinal())
    assert found == token


# --- encoding ---

VOCABULARY = Vocabulary(codes=("a", "b", "c", "d", "e", "f"))
BORN = date(1950, 1, 1).toordinal()
AT_69, AT_70 = date(2019, 12, 31).toordinal(), date(2020, 1, 1).toordinal()


def tokens_of(example: object) -> list[str]:
    assert isinstance(example, TimelineExample)
    return [VOCABULARY.tokens[token_id] for token_id in example.token_ids]


def timeline(codes: str, days: list[int], person: Person | None = None) -> Timeline:
    return Timeline(patient_id="p", demographics=person or Person(), codes=tuple(codes), days=tuple(days))


def test_encoding_says_sex_age_and_the_decades_that_begin() -> None:
    person = Person(birth_day=BORN, sex=Sex.FEMALE)
    encoded = TimelineEncoder(VOCABULARY, max_length=20, min_tokens=1).encode(
        timeline("abc", [AT_69, AT_70, AT_70], person)
    )
    assert encoded.fit is Fit.WHOLE
    assert isinstance(encoded.example, TimelineExample)
    assert tokens_of(encoded.example) == ["<SEX:female>", "<AGE:60>", "<SEP>", "a", "<AGE:70>", "b", "c"]
    assert encoded.example.targets == (3, 5, 6)
    assert encoded.example.days == (AT_69, AT_70, AT_70)
    assert encoded.example.n_units == 3
    assert encoded.example.n_tokens == 7


def test_encoding_without_a_person_begins_with_the_separator() -> None:
    encoded = TimelineEncoder(VOCABULARY, max_length=20).encode(timeline("abxcyde", [1, 2, 3, 4, 5, 6, 7]))
    assert isinstance(encoded.example, TimelineExample)
    assert tokens_of(encoded.example) == ["<SEP>", "a", "b", "c", "d", "e"]
    assert encoded.example.days == (1, 2, 4, 6, 7)


def test_encoding_takes_each_code_the_first_time_or_each_time() -> None:
    twice = timeline("aba", [1, 2, 3])
    for occurrences, expected in ((Occurrences.FIRST, "ab"), (Occurrences.ALL, "aba")):
        encoder = TimelineEncoder(VOCABULARY, max_length=20, min_tokens=1, occurrences=occurrences)
        assert tokens_of(encoder.encode(twice).example) == ["<SEP>", *expected]


def test_encoding_counts_known_codes_only_against_the_minimum() -> None:
    encoder = TimelineEncoder(VOCABULARY, max_length=20)
    assert encoder.encode(timeline("abcd", [1] * 4)).fit is Fit.NO_ROOM
    assert encoder.encode(timeline("abcdxyz", [1] * 7)).example is None
    assert encoder.encode(timeline("abcde", [1] * 5)).example is not None


def test_encoding_cuts_the_end_and_never_leaves_an_age_token_last() -> None:
    person = Person(birth_day=BORN, sex=Sex.MALE)
    whole = timeline("abcdef", [AT_69, AT_69, AT_70, AT_70, AT_70, AT_70], person)
    assert TimelineEncoder(VOCABULARY, max_length=3).encode(whole).fit is Fit.NO_ROOM
    for max_length, expected in ((4, "a"), (5, "ab"), (6, "ab"), (7, "abc"), (9, "abcde")):
        encoded = TimelineEncoder(VOCABULARY, max_length=max_length).encode(whole)
        assert encoded.fit is Fit.CUT
        assert isinstance(encoded.example, TimelineExample)
        assert [VOCABULARY.tokens[code_id] for code_id in encoded.example.code_ids] == list(expected)
        assert encoded.example.token_ids[-1] == encoded.example.code_ids[-1]


def test_example_shows_no_token_and_has_targets_behind_its_first_token() -> None:
    example = TimelineExample(token_ids=(1, 17), targets=(1,), days=(5,))
    assert repr(example) == "TimelineExample(1 of 2 tokens)"
    for targets, days in (((0,), (5,)), ((), ()), ((1,), ())):
        with pytest.raises(ValueError, match="codes behind"):
            TimelineExample(token_ids=(1, 17), targets=targets, days=days)
