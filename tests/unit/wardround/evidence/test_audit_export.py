from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fl_protocol.audit.chain import LogTip, append_event
from fl_protocol.audit.checkpoint import Checkpoint, sign_checkpoint
from fl_protocol.audit.events import AuditEvent, AuditKind
from fl_protocol.signing.keys import EcdsaSigner, spki_fingerprint
from wardround.errors import EvidenceFaultError, ResponseUnreadableError
from wardround.evidence.audit_export import verify_export

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def signer() -> EcdsaSigner:
    return EcdsaSigner(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def export(signer: EcdsaSigner) -> list[str]:
    tip, lines = (
        LogTip(),
        [json.dumps({"log": "wardround-audit", "origin": "here", "signing_spki": b64(signer.spki_der)})],
    )
    for number in range(5):
        event = AuditEvent(kind=AuditKind.SITE_INVITED, at=AT, actor="user:ada", facts={"site_id": f"site-{number}"})
        tip, row = append_event(tip, event)
        lines.append(json.dumps({"seq": row.seq, "body": b64(row.body)}))
    signed = sign_checkpoint(signer, Checkpoint(origin="here", size=tip.size, head=tip.head().root, at=AT))
    lines.append(json.dumps({"checkpoint": {"size": 5, "body": b64(signed.body), "signature": b64(signed.signature)}}))
    return lines


def rewrite(line: str, old: str, new: str) -> str:
    document = json.loads(line)
    document["body"] = b64(base64.b64decode(document["body"]).replace(old.encode(), new.encode()))
    return json.dumps(document)


def test_whole_log_verifies_and_tells_size_and_key(export: list[str], signer: EcdsaSigner) -> None:
    verified = verify_export(export, expected_key_sha256=spki_fingerprint(signer.spki_der))
    assert (verified.size, verified.n_unsigned, verified.origin) == (5, 0, "here")
    assert verified.to_document()["verified"] is True


@pytest.mark.parametrize("place", [0, 1, 3])
def test_log_with_an_altered_row_is_refused_and_the_row_named(export: list[str], place: int) -> None:
    export[1 + place] = rewrite(export[1 + place], f"site-{place}", "site-x")
    with pytest.raises(EvidenceFaultError) as caught:
        verify_export(export)
    assert caught.value.facts["row"] == place
    assert f"row {place} is altered" in caught.value.message
    assert caught.value.exit_code == 1


def test_log_with_a_dropped_row_is_refused_and_the_row_named(export: list[str]) -> None:
    del export[3]
    with pytest.raises(EvidenceFaultError) as caught:
        verify_export(export)
    assert caught.value.facts["row"] == 2


def test_log_whose_end_was_cut_is_refused(export: list[str]) -> None:
    del export[5]
    with pytest.raises(EvidenceFaultError) as caught:
        verify_export(export)
    assert (caught.value.facts["row"], caught.value.facts["reason"]) == (4, "truncated")


def test_log_of_another_key_than_expected_is_refused(export: list[str]) -> None:
    with pytest.raises(EvidenceFaultError, match="another key"):
        verify_export(export, expected_key_sha256="f" * 64)


def test_log_that_nobody_vouches_for_is_refused(export: list[str]) -> None:
    with pytest.raises(EvidenceFaultError, match="checkpoint"):
        verify_export(export[:-1])


@pytest.mark.parametrize("lines", [[], ['{"log": "another"}'], ['{"seq": 0}']])
def test_something_that_is_no_export_is_refused(lines: list[str]) -> None:
    with pytest.raises(EvidenceFaultError, match="no export"):
        verify_export(lines)


def test_line_that_is_no_json_is_unreadable(export: list[str]) -> None:
    with pytest.raises(ResponseUnreadableError):
        verify_export([*export, "{"])
