from __future__ import annotations

import json

import pytest

from site_agent.datasets.errors import DatasetFileError, InspectionFailedError
from site_agent.datasets.inspector import Inspection, inspection_from_output

GOOD = {"sha256": "ab" * 32, "records": 12, "patients": 7}


def output(document: object) -> bytes:
    return json.dumps(document).encode()


def test_inspection_good_output_is_read() -> None:
    expected = Inspection(sha256="ab" * 32, n_records=12, n_patients=7)
    assert inspection_from_output(output(GOOD), exit_code=0) == expected


def test_inspection_failure_keeps_code_message_advice_and_record() -> None:
    said = {
        "code": "record-malformed",
        "message": "record 3 has no completion",
        "advice": "Give it one.",
        "facts": {"record": 3, "message": "shadow", "not a name": 1},
    }
    with pytest.raises(DatasetFileError) as caught:
        inspection_from_output(output({"error": said}), exit_code=1)
    error = caught.value
    assert (error.failure_code, error.message, error.advice) == (
        "record-malformed",
        "record 3 has no completion",
        "Give it one.",
    )
    assert error.facts == {"failure_code": "record-malformed", "record": 3}


def test_inspection_faults_are_kept_by_place_and_kind_and_what_is_no_fault_is_not() -> None:
    said = {
        "code": "dataset-malformed",
        "message": "3 faults in 9 records",
        "facts": {"record": 2},
        "n_faults": 3,
        "faults": [
            {"line": 2, "field": "year", "fault": "too-large", "path": "line 2, year", "message": "too-large"},
            {"file": "notes.jsonl", "line": 5, "field": None, "fault": "not-json"},
            {"file": 5, "line": 5, "field": None, "fault": "not-json"},
            {"line": "5", "field": None, "fault": "not-json"},
            "Jane Doe",
        ],
    }
    with pytest.raises(DatasetFileError) as caught:
        inspection_from_output(output({"error": said}), exit_code=1)
    assert [str(fault) for fault in caught.value.faults] == [
        "line 2, year: too-large",
        "notes.jsonl, line 5: not-json",
    ]
    assert caught.value.n_faults == 3


@pytest.mark.parametrize(
    ("stdout", "exit_code"),
    [
        (b"", 0),
        (b"Traceback: patient 7", 1),
        (b"[1]", 0),
        (output({**GOOD, "sha256": "AB"}), 0),
        (output({**GOOD, "records": "12"}), 0),
        (output({**GOOD, "patients": -1}), 0),
        (output({**GOOD, "records": True}), 0),
        (output({**GOOD, "records": 2**63}), 0),
        (output(GOOD), 3),
    ],
)
def test_inspection_unintelligible_output_is_no_verdict_and_is_not_repeated(stdout: bytes, exit_code: int) -> None:
    with pytest.raises(InspectionFailedError) as caught:
        inspection_from_output(stdout, exit_code=exit_code)
    assert "patient 7" not in str(caught.value)
