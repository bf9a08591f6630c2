from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from fl_protocol.audit.chain import (
    AuditProofInvalidError,
    LogTip,
    TreeHead,
    prove_consistency,
    prove_inclusion,
    tip_from_leaves,
    verify_consistency,
    verify_inclusion,
)
from fl_protocol.audit.events import AuditEvent, AuditKind
from fl_protocol.packing import PackedBytesInvalidError


def naive_root(bodies: list[bytes]) -> bytes:
    if not bodies:
        return hashlib.sha256(b"").digest()
    if len(bodies) == 1:
        return hashlib.sha256(b"\x00" + bodies[0]).digest()
    k = 1
    while 2 * k < len(bodies):
        k *= 2
    return hashlib.sha256(b"\x01" + naive_root(bodies[:k]) + naive_root(bodies[k:])).digest()


def test_rows_point_at_the_leaf_hash_of_the_row_before(make_log: Any) -> None:
    log = make_log(5, ())
    previous = "00" * 32
    for number, row in enumerate(log.rows):
        document = json.loads(row.body)
        assert (row.seq, document["seq"], document["prev"]) == (number, number, previous)
        previous = hashlib.sha256(b"\x00" + row.body).hexdigest()
        assert row.leaf_sha256 == previous


def test_head_after_each_row_is_that_of_the_definition(make_log: Any) -> None:
    log = make_log(9, ())
    bodies = [row.body for row in log.rows]
    for size in range(10):
        assert log.heads[size] == TreeHead(size=size, root=naive_root(bodies[:size]).hex())


def test_tip_survives_its_encoding_and_can_be_rebuilt(make_log: Any) -> None:
    for size in (0, 1, 6, 7, 8):
        log = make_log(size, ())
        assert LogTip.decode(log.tip.encode()) == log.tip
        assert tip_from_leaves([row.leaf_sha256 for row in log.rows]) == log.tip


@pytest.mark.parametrize("cut", [0, 4, 12, -33])
def test_tip_that_is_cut_is_refused(make_log: Any, cut: int) -> None:
    with pytest.raises(PackedBytesInvalidError):
        LogTip.decode(make_log(7, ()).tip.encode()[: cut or None] + (b"" if cut else b"\x00"))


def test_proofs_of_a_growing_log_verify(make_log: Any) -> None:
    log = make_log(11, ())
    leaves = [row.leaf_sha256 for row in log.rows]
    for size in range(1, 12):
        for seq in range(size):
            proof = prove_inclusion(leaves[:size], seq)
            verify_inclusion(log.rows[seq].body, seq=seq, head=log.heads[size], proof=proof)
        for old in range(size + 1):
            verify_consistency(log.heads[old], log.heads[size], prove_consistency(leaves[:size], old))


def test_inclusion_of_an_altered_row_is_refused(make_log: Any) -> None:
    log = make_log(6, ())
    proof = prove_inclusion([row.leaf_sha256 for row in log.rows], 2)
    with pytest.raises(AuditProofInvalidError) as caught:
        verify_inclusion(log.rows[2].body + b" ", seq=2, head=log.heads[6], proof=proof)
    assert caught.value.facts["seq"] == 2


def test_fork_is_refused_by_consistency(make_log: Any) -> None:
    log = make_log(8, ())
    fork = make_log(8, (), change=_other)
    leaves = [row.leaf_sha256 for row in fork.rows]
    with pytest.raises(AuditProofInvalidError):
        verify_consistency(log.heads[5], fork.heads[8], prove_consistency(leaves, 5))


def test_proof_that_is_no_hash_is_refused(make_log: Any) -> None:
    log = make_log(3, ())
    with pytest.raises(AuditProofInvalidError):
        verify_consistency(log.heads[2], log.heads[3], ["not hexadecimal"])


def _other(number: int) -> AuditEvent:
    return AuditEvent(kind=AuditKind.RUN_STARTED, at=datetime(2026, 1, 1, tzinfo=UTC), actor=f"user:{number}")
