from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from fl_protocol.audit.chain import AuditRow
from fl_protocol.audit.events import AuditEvent, event_from_bytes
from fl_protocol.audit.verify import AuditFault, AuditFaultReason, AuditVerified, verify_log
from fl_protocol.signing.signed import SignedBody
from fl_protocol.testing.entropy import seeded_signer


def rehashed(row: AuditRow, body: bytes) -> AuditRow:
    """The row as one who also repairs its stored hash leaves it."""
    return AuditRow(seq=row.seq, body=body, leaf_sha256=hashlib.sha256(b"\x00" + body).hexdigest())  # type: ignore[arg-type]


def check(log: Any, rows: list[AuditRow] | None = None) -> AuditVerified | AuditFault:
    return verify_log(log.rows if rows is None else rows, log.signed, log.signer.spki_der)


def test_whole_log_is_verified_with_size_head_and_unsigned_rows(make_log: Any) -> None:
    log = make_log(10, (3, 8))
    assert check(log) == AuditVerified(size=10, head=log.heads[10].root, n_unsigned=2)


def test_empty_log_is_verified(make_log: Any) -> None:
    log = make_log(0, ())
    assert check(log) == AuditVerified(size=0, head=hashlib.sha256(b"").hexdigest(), n_unsigned=0)


def test_checkpoints_are_taken_in_any_order(make_log: Any) -> None:
    log = make_log(10, (8, 0, 3, 10))
    assert isinstance(check(log), AuditVerified)


@pytest.mark.parametrize("seq", range(8))
def test_altered_row_is_named(make_log: Any, seq: int) -> None:
    log = make_log(8, (8,))
    body = log.rows[seq].body.replace(b"charite", b"st-mary")
    rows = [*log.rows[:seq], replace(log.rows[seq], body=body), *log.rows[seq + 1 :]]
    assert check(log, rows) == AuditFault(seq=seq, reason=AuditFaultReason.ALTERED)


@pytest.mark.parametrize("seq", range(7))
def test_altered_row_with_a_repaired_hash_is_named(make_log: Any, seq: int) -> None:
    log = make_log(8, (8,))
    changed = rehashed(log.rows[seq], log.rows[seq].body.replace(b"charite", b"st-mary"))
    rows = [*log.rows[:seq], changed, *log.rows[seq + 1 :]]
    assert check(log, rows) == AuditFault(seq=seq, reason=AuditFaultReason.ALTERED)


@pytest.mark.parametrize("seq", range(1, 7))
def test_row_with_an_altered_link_and_a_repaired_hash_is_named(make_log: Any, seq: int) -> None:
    log = make_log(8, (8,))
    old = log.rows[seq - 1].leaf_sha256.encode()
    changed = rehashed(log.rows[seq], log.rows[seq].body.replace(old, b"0" * 64))
    rows = [*log.rows[:seq], changed, *log.rows[seq + 1 :]]
    assert check(log, rows) == AuditFault(seq=seq, reason=AuditFaultReason.ALTERED)


def test_altered_last_row_with_a_repaired_hash_is_found_by_the_checkpoint(make_log: Any) -> None:
    log = make_log(8, (7, 8))
    changed = rehashed(log.rows[7], log.rows[7].body.replace(b"charite", b"st-mary"))
    assert check(log, [*log.rows[:7], changed]) == AuditFault(seq=7, reason=AuditFaultReason.REWRITTEN)


def test_rewritten_tail_is_named_from_the_last_vouched_row(make_log: Any) -> None:
    log = make_log(9, (4, 9))
    forged = make_log(9, (), change=lambda number: _forged(log, number))
    assert [row.body for row in forged.rows[:4]] == [row.body for row in log.rows[:4]]
    assert check(log, forged.rows) == AuditFault(seq=4, reason=AuditFaultReason.REWRITTEN)


def test_rewriting_behind_the_last_checkpoint_cannot_be_seen_but_is_counted_as_unsigned(make_log: Any) -> None:
    log = make_log(9, (4,))
    forged = make_log(9, (), change=lambda number: _forged(log, number))
    verified = check(log, forged.rows)
    assert isinstance(verified, AuditVerified)
    assert verified.n_unsigned == 5


@pytest.mark.parametrize("seq", range(7))
def test_dropped_row_is_named(make_log: Any, seq: int) -> None:
    log = make_log(8, (8,))
    rows = [*log.rows[:seq], *log.rows[seq + 1 :]]
    assert check(log, rows) == AuditFault(seq=seq, reason=AuditFaultReason.DROPPED)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (2, 5), (6, 7)])
def test_exchanged_rows_are_named_by_the_first_place(make_log: Any, first: int, second: int) -> None:
    log = make_log(8, (8,))
    rows = list(log.rows)
    rows[first], rows[second] = rows[second], rows[first]
    assert check(log, rows) == AuditFault(seq=first, reason=AuditFaultReason.REORDERED)


def test_row_whose_column_disagrees_with_its_bytes_is_named(make_log: Any) -> None:
    log = make_log(4, (4,))
    rows = [*log.rows[:2], replace(log.rows[2], seq=9), log.rows[3]]
    assert check(log, rows) == AuditFault(seq=2, reason=AuditFaultReason.REORDERED)


def test_repeated_row_is_named(make_log: Any) -> None:
    log = make_log(5, (5,))
    rows = [*log.rows[:3], log.rows[2], *log.rows[3:]]
    assert check(log, rows) == AuditFault(seq=3, reason=AuditFaultReason.INSERTED)


@pytest.mark.parametrize("kept", [0, 5, 7])
def test_truncated_log_is_named_by_its_first_missing_row(make_log: Any, kept: int) -> None:
    log = make_log(8, (8,))
    assert check(log, log.rows[:kept]) == AuditFault(seq=kept, reason=AuditFaultReason.TRUNCATED)


def test_row_that_is_no_event_is_named(make_log: Any) -> None:
    log = make_log(3, (3,))
    rows = [log.rows[0], rehashed(log.rows[1], b"{}"), log.rows[2]]
    assert check(log, rows) == AuditFault(seq=1, reason=AuditFaultReason.ALTERED)


def test_first_row_that_points_anywhere_is_named(make_log: Any) -> None:
    log = make_log(1, ())
    rows = [rehashed(log.rows[0], log.rows[0].body.replace(b'"prev":"0', b'"prev":"1'))]
    assert rows[0].body != log.rows[0].body
    assert check(log, rows) == AuditFault(seq=0, reason=AuditFaultReason.ALTERED)


def test_checkpoint_with_a_bad_signature_is_named_by_its_number(make_log: Any) -> None:
    log = make_log(4, (2, 4))
    log.signed[1] = SignedBody(body=log.signed[1].body, signature=log.signed[0].signature)
    assert check(log) == AuditFault(seq=1, reason=AuditFaultReason.CHECKPOINT_SIGNATURE)


def test_log_checked_with_another_partys_key_fails(make_log: Any) -> None:
    log = make_log(4, (4,))
    fault = verify_log(log.rows, log.signed, seeded_signer("other").spki_der)
    assert fault == AuditFault(seq=0, reason=AuditFaultReason.CHECKPOINT_SIGNATURE)


def test_checkpoint_of_another_log_is_refused(make_log: Any) -> None:
    log = make_log(4, (2,))
    log.signed.append(log.sign(4, origin="site:ucsf"))
    assert check(log) == AuditFault(seq=1, reason=AuditFaultReason.CHECKPOINT_ORIGIN)
    alone = verify_log(log.rows, log.signed[:1], log.signer.spki_der, origin="site:ucsf")
    assert alone == AuditFault(seq=0, reason=AuditFaultReason.CHECKPOINT_ORIGIN)


def test_two_checkpoints_of_one_size_with_different_heads_fail(make_log: Any) -> None:
    log = make_log(4, (4,))
    log.signed.append(log.sign(4, root="00" * 32))
    assert check(log) == AuditFault(seq=4, reason=AuditFaultReason.REWRITTEN)


def _forged(log: Any, number: int) -> AuditEvent:
    event = event_from_bytes(log.rows[number].body).event
    return event if number < 4 else replace(event, actor="user:mallory")
