"""A declared schema: read strictly, and a fault of a record named by field and kind, never by what stands there."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from site_agent.jobs.record_schema import (
    FieldFault,
    FieldKind,
    FieldRule,
    RecordSchema,
    RecordSchemaFaultsError,
    schema_from_document,
)

WHOLE = {
    "id": {"type": "text", "max_length": 8},
    "ward": {"type": "text", "allowed": ["a", "b"]},
    "year": {"type": "integer", "required": False, "at_least": 1990, "at_most": 2030},
    "dose": {"type": "number", "at_least": 0.5},
    "smokes": {"type": "boolean", "required": False},
    "seen": {"type": "date"},
}
GOOD = {"id": "r1", "ward": "a", "dose": 1, "seen": "2026-01-31"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"year": 1990, "smokes": True}, []),
        ({"year": None}, []),
        ({"id": None}, [("id", "missing")]),
        ({"id": 7}, [("id", "not-text")]),
        ({"id": "123456789"}, [("id", "too-long")]),
        ({"id": "\ud800"}, [("id", "not-unicode")]),
        ({"ward": "c"}, [("ward", "not-an-allowed-value")]),
        ({"year": 1989}, [("year", "too-small")]),
        ({"year": 2031}, [("year", "too-large")]),
        ({"year": "2000"}, [("year", "not-a-whole-number")]),
        ({"year": 2000.5}, [("year", "not-a-whole-number")]),
        ({"year": True}, [("year", "not-a-whole-number")]),
        ({"dose": 0.4}, [("dose", "too-small")]),
        ({"dose": float("nan")}, [("dose", "not-a-number")]),
        ({"dose": float("inf")}, [("dose", "not-a-number")]),
        ({"dose": 10**400}, [("dose", "not-a-number")]),
        ({"dose": True}, [("dose", "not-a-number")]),
        ({"smokes": 1}, [("smokes", "not-true-or-false")]),
        ({"seen": "31.01.2026"}, [("seen", "not-a-date")]),
        ({"seen": "20260131"}, [("seen", "not-a-date")]),
        ({"seen": "2026-02-30"}, [("seen", "not-a-date")]),
        ({"Jane Doe": "x", "born": "y"}, [(None, "undeclared-field")]),
        ({"id": None, "dose": "much"}, [("id", "missing"), ("dose", "not-a-number")]),
    ],
)
def test_check_names_each_fault_by_field_and_kind(
    changes: dict[str, object], expected: list[tuple[str | None, str]]
) -> None:
    schema = schema_from_document(WHOLE)
    assert [(name, fault.value) for name, fault in schema.check({**GOOD, **changes})] == expected


@pytest.mark.parametrize(
    ("document", "paths"),
    [
        ({}, ["schema"]),
        ([], ["schema"]),
        ({"a": {}}, ["schema.a.type"]),
        ({"a": {"type": "string"}}, ["schema.a.type"]),
        ({"a": "text"}, ["schema.a"]),
        ({"a": {"type": "text", "requird": True}}, ["schema.a.requird"]),
        ({"a": {"type": "text", "required": "yes"}}, ["schema.a.required"]),
        ({"a": {"type": "text", "at_least": 3}}, ["schema.a.at_least"]),
        ({"a": {"type": "integer", "max_length": 3}}, ["schema.a.max_length"]),
        ({"a": {"type": "boolean", "allowed": [True]}}, ["schema.a.allowed", "schema.a.allowed"]),
        ({"a": {"type": "integer", "allowed": ["1"]}}, ["schema.a.allowed"]),
        ({"a": {"type": "integer", "allowed": [True]}}, ["schema.a.allowed"]),
        ({"a": {"type": "text", "allowed": []}}, ["schema.a.allowed"]),
        ({"a": {"type": "text", "max_length": -1}}, ["schema.a.max_length"]),
        ({"a": {"type": "number", "at_most": "9"}}, ["schema.a.at_most"]),
        ({"": {"type": "text"}, 3: {"type": "text"}}, ["schema", "schema"]),
        ({f"f{k}": {"type": "text"} for k in range(201)}, ["schema"]),
    ],
)
def test_schema_with_faults_lists_each_with_its_path(document: object, paths: list[str]) -> None:
    with pytest.raises(RecordSchemaFaultsError) as caught:
        schema_from_document(document)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == paths


NAMES = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=8)
RULES = st.builds(
    FieldRule,
    name=NAMES,
    kind=st.sampled_from(FieldKind),
    is_required=st.booleans(),
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(rules=st.lists(RULES, min_size=1, max_size=4, unique_by=lambda rule: rule.name))
def test_schema_written_down_is_the_same_schema(rules: list[FieldRule]) -> None:
    schema = RecordSchema(fields=tuple(rules))
    assert schema_from_document(json.loads(json.dumps(schema.to_document()))) == schema


@given(
    rules=st.lists(RULES, min_size=1, max_size=4, unique_by=lambda rule: rule.name),
    record=st.dictionaries(NAMES, JSON_VALUES, max_size=4),
)
def test_check_tells_declared_names_and_closed_codes_whatever_a_record_holds(
    rules: list[FieldRule], record: dict[str, object]
) -> None:
    declared = {rule.name for rule in rules} | {None}
    for name, fault in RecordSchema(fields=tuple(rules)).check(record):
        assert name in declared
        assert fault in set(FieldFault)
