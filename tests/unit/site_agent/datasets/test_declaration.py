from __future__ import annotations

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
    text = "name: Medical QA\nformat: csv\npurposes: []\npurpose: research\ndescription: 3\n"
    assert faults_of(tmp_path, text) == ["description", "name", "path", "format", "purposes", "purpose"]


@pytest.mark.parametrize("text", ["", "- a\n", "name: [\n", "name: \x00"])
def test_load_declaration_that_is_no_mapping_is_a_fault(text: str, tmp_path: Path) -> None:
    assert len(faults_of(tmp_path, text)) == 1


def test_load_declaration_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(DatasetDeclarationError) as caught:
        load_declaration(tmp_path / "none.yaml")
    assert "is not there" in caught.value.faults[0]
