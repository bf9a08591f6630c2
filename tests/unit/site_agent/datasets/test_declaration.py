from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from site_agent.datasets.declaration import DatasetDeclaration, load_declaration
from site_agent.datasets.errors import DatasetDeclarationError


def faults_of(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DatasetDeclarationError) as caught:
        load_declaration(tmp_path / "data.yaml")
    return [fault.partition(":")[0] for fault in caught.value.faults]


def test_load_declaration_relative_path_is_the_declarations_own(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("name: medical-qa\npath: records/a.jsonl\npurposes: [research, audit]\n")
    assert load_declaration(tmp_path / "data.yaml") == DatasetDeclaration(
        name="medical-qa", path=tmp_path / "records" / "a.jsonl", format="jsonl", purposes=("audit", "research")
    )


def test_load_declaration_many_faults_lists_all(tmp_path: Path) -> None:
    text = "name: Medical QA\nformat: xlsx\npurposes: []\npurpose: research\ndescription: 3\n"
    assert faults_of(tmp_path, text) == ["description", "name", "path", "format", "purposes", "purpose"]


def test_load_declaration_whole_reads_schema_ground_and_last_day(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(
        """
name: medical-qa
path: a.jsonl
purposes: [research]
patient_field: person
legal_basis: gdpr-9-2-j
consent: broad-consent-2024
expires: 2027-06-30
schema:
  id: {type: text, max_length: 64}
  prompt: {type: text}
  completion: {type: text}
  person: {type: text, required: false}
"""
    )
    declared = load_declaration(tmp_path / "data.yaml")
    assert (declared.legal_basis, declared.consent) == ("gdpr-9-2-j", "broad-consent-2024")
    assert (declared.expires_on, declared.patient_field) == (date(2027, 6, 30), "person")
    assert declared.schema is not None
    assert [(rule.name, rule.is_required) for rule in declared.schema.fields] == [
        ("id", True),
        ("prompt", True),
        ("completion", True),
        ("person", False),
    ]


HEAD = "name: a\npath: a.jsonl\npurposes: [research]\n"


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("expires: next year\n", ["expires"]),
        ("expires: 2027-06-30T12:00:00Z\n", ["expires"]),
        ("expires: 7\n", ["expires"]),
        ("consent: [a]\n", ["consent"]),
        ("legal_basis: Art. 9\n", ["legal_basis"]),
        ("consent: broad\nexpiry: 2027-06-30\n", ["expiry"]),
        ("schema: {id: {type: text, size: 3}}\n", ["schema.id.size"]),
        ("patient_field: person\nschema: {id: {type: text}}\n", ["patient_field"]),
        ("schema: {patient_id: {type: integer}}\n", ["schema.patient_id.type"]),
        ("purposes: [billing]\n", ["data.yaml is no YAML"]),
    ],
    ids=lambda value: None if isinstance(value, list) else value.split(":")[0],
)
def test_load_declaration_faults_of_ground_schema_and_last_day_have_their_path(
    text: str, paths: list[str], tmp_path: Path
) -> None:
    assert faults_of(tmp_path, HEAD + text) == paths


@pytest.mark.parametrize("text", ["", "- a\n", "name: [\n", "name: \x00"])
def test_load_declaration_that_is_no_mapping_is_a_fault(text: str, tmp_path: Path) -> None:
    assert len(faults_of(tmp_path, text)) == 1


def test_load_declaration_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(DatasetDeclarationError) as caught:
        load_declaration(tmp_path / "none.yaml")
    assert "is not there" in caught.value.faults[0]
