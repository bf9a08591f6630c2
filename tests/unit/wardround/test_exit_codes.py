from __future__ import annotations

import pytest

from fl_protocol.errors import ProtocolError, WardroundError
from fl_protocol.ids import IdentifierInvalidError
from wardround.errors import (
    CommandError,
    DemoFailedError,
    EvidenceFaultError,
    NotFoundError,
    RefusedError,
    SpecRefusedError,
    UnavailableError,
    UsageInvalidError,
)
from wardround.exit_codes import error_document, exit_code_of


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DemoFailedError("x"), 1),
        (EvidenceFaultError("x"), 1),
        (UsageInvalidError("x"), 2),
        (SpecRefusedError("x", faults=()), 2),
        (IdentifierInvalidError("x"), 2),
        (RefusedError("x"), 3),
        (NotFoundError("x"), 4),
        (UnavailableError("x"), 5),
        (ProtocolError("x"), 1),
        (WardroundError("x"), 1),
    ],
)
def test_exit_code_of_each_kind_of_error_is_the_promised_one(error: WardroundError, code: int) -> None:
    assert exit_code_of(error) == code


def test_error_document_tells_code_sentence_advice_and_facts() -> None:
    error = CommandError("it failed", advice="do this", code="its-code", site_id="st-mary")
    expected = {"code": "its-code", "message": "it failed", "advice": "do this", "facts": {"site_id": "st-mary"}}
    assert error_document(error) == {"error": expected}


def test_error_document_of_faults_lists_them() -> None:
    document = error_document(SpecRefusedError("2 faults", faults=(("rounds", "is required"),)))["error"]
    assert isinstance(document, dict)
    assert document["faults"] == [{"path": "rounds", "message": "is required"}]


def test_error_document_of_a_failed_demo_holds_the_end_of_the_log() -> None:
    document = error_document(DemoFailedError("it died", log_tail=["last words"]))["error"]
    assert isinstance(document, dict)
    assert document["log_tail"] == ["last words"]
