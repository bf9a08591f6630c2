from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.audit.chain import (
    AuditProofInvalidError,
    AuditRow,
    LogTip,
    TreeHead,
    append_event,
    verify_consistency,
)
from fl_protocol.audit.checkpoint import Checkpoint, sign_checkpoint
from fl_protocol.audit.events import AuditEvent, AuditFact, AuditKind, RecordedEvent, event_bytes, event_from_bytes
from fl_protocol.audit.subtrees import LogSubtrees
from fl_protocol.audit.verify import AuditFault, AuditVerified, verify_log
from fl_protocol.codec.merkle import root_from_leaf_hashes
from fl_protocol.ids import Sha256Hex
from fl_protocol.signing.signed import SignedBody
from fl_protocol.testing.entropy import seeded_signer
from wardround.errors import EvidenceFaultError
from wardround.evidence.audit_export import verify_export

SIGNER = seeded_signer("property")
START = datetime(2026, 1, 1, tzinfo=UTC)

FACTS = st.dictionaries(
    st.text(max_size=8).filter(lambda text: text.isprintable()),
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53) + 1, 2**53 - 1), st.text(max_size=20)),
    max_size=4,
)
EVENTS = st.builds(
    AuditEvent,
    kind=st.sampled_from(AuditKind),
    at=st.integers(0, 10**12).map(lambda micros: START + timedelta(microseconds=micros)),
    actor=st.sampled_from(["site:a", "user:b", "coordinator"]),
    facts=FACTS,
)


def log_of(events: list[AuditEvent]) -> tuple[list[AuditRow], list[SignedBody]]:
    tip = LogTip()
    rows = []
    for event in events:
        tip, row = append_event(tip, event)
        rows.append(row)
    checkpoint = Checkpoint(origin="a", size=tip.size, head=tip.head().root, at=START)
    return rows, [sign_checkpoint(SIGNER, checkpoint)]


def rehashed(row: AuditRow, body: bytes) -> AuditRow:
    return AuditRow(seq=row.seq, body=body, leaf_sha256=Sha256Hex(hashlib.sha256(b"\x00" + body).hexdigest()))


@given(events=st.lists(EVENTS, max_size=8))
def test_log_of_any_events_is_verified_and_read_back(events: list[AuditEvent]) -> None:
    rows, checkpoints = log_of(events)
    assert isinstance(verify_log(rows, checkpoints, SIGNER.spki_der), AuditVerified)
    recorded = [event_from_bytes(row.body) for row in rows]
    assert [item.event for item in recorded] == events
    assert [event_bytes(item) for item in recorded] == [row.body for row in rows]


@settings(deadline=None)
@given(events=st.lists(EVENTS, min_size=1, max_size=8), data=st.data())
def test_any_change_of_a_signed_log_is_found(events: list[AuditEvent], data: st.DataObject) -> None:
    rows, checkpoints = log_of(events)
    place = data.draw(st.integers(0, len(rows) - 1))
    change = data.draw(st.sampled_from(["byte", "byte-and-hash", "drop", "repeat", "swap", "hash"]))
    changed = list(rows)
    body = bytearray(rows[place].body)
    body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    match change:
        case "byte":
            changed[place] = AuditRow(seq=place, body=bytes(body), leaf_sha256=rows[place].leaf_sha256)
        case "byte-and-hash":
            changed[place] = rehashed(rows[place], bytes(body))
        case "drop":
            del changed[place]
        case "repeat":
            changed.insert(place, rows[place])
        case "swap":
            other = (
                data.draw(st.integers(0, len(rows) - 1).filter(lambda other: other != place)) if len(rows) > 1 else 0
            )
            changed[place], changed[other] = changed[other], changed[place]
            if changed == rows:
                return
        case "hash":
            changed[place] = AuditRow(seq=place, body=rows[place].body, leaf_sha256=Sha256Hex("00" * 32))
    fault = verify_log(changed, checkpoints, SIGNER.spki_der)
    assert isinstance(fault, AuditFault)
    if change in ("byte", "hash"):
        assert fault.seq == place


def _is_encodable(text: str) -> bool:
    return not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)


ASCII_TEXT = st.text(st.characters(max_codepoint=127), max_size=24)


@given(
    seq=st.integers(0, 2**53 - 1),
    actor=ASCII_TEXT.filter(lambda text: text and text.isprintable()),
    facts=st.dictionaries(
        st.one_of(ASCII_TEXT, st.text(max_size=6).filter(_is_encodable)),
        st.one_of(
            st.none(), st.booleans(), st.integers(-(2**53) + 1, 2**53 - 1), ASCII_TEXT, st.text().filter(_is_encodable)
        ),
        max_size=6,
    ),
)
def test_event_has_the_canonical_form_of_rfc_8785(seq: int, actor: str, facts: dict[str, AuditFact]) -> None:
    event = AuditEvent(kind=AuditKind.POLICY_LOADED, at=START, actor=actor, facts=facts)
    written = event_bytes(RecordedEvent(seq=seq, prev="0" * 64, event=event))
    document = {"seq": seq, "prev": "0" * 64, "at": "2026-01-01T00:00:00.000000Z"}
    # Another implementation of the standard than the one that writes most events.
    assert written == rfc8785.dumps({**document, "kind": "policy.loaded", "actor": actor, "facts": facts})


@settings(deadline=None)
@given(events=st.lists(EVENTS, min_size=2, max_size=10), data=st.data())
def test_any_single_change_of_an_exported_line_is_found(events: list[AuditEvent], data: st.DataObject) -> None:
    rows, checkpoints = log_of(events)
    lines = [
        json.dumps({"log": "wardround-audit", "origin": "a", "signing_spki": b64(SIGNER.spki_der)}),
        *(json.dumps({"body": b64(row.body), "leaf_sha256": row.leaf_sha256, "seq": row.seq}) for row in rows),
        *(json.dumps({"checkpoint": {"body": b64(c.body), "signature": b64(c.signature)}}) for c in checkpoints),
    ]
    assert verify_export(lines).size == len(rows)
    place = data.draw(st.integers(1, len(rows)))
    other = data.draw(st.integers(1, len(rows)).filter(lambda other: other != place))
    change = data.draw(st.sampled_from(["alter", "alter-and-hash", "drop", "swap", "repeat", "cut", "seq"]))
    document = json.loads(lines[place])
    body = bytearray(base64.b64decode(document["body"]))
    body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    match change:
        case "alter":
            lines[place] = json.dumps({**document, "body": b64(bytes(body))})
        case "alter-and-hash":
            leaf = hashlib.sha256(b"\x00" + body).hexdigest()
            lines[place] = json.dumps({**document, "body": b64(bytes(body)), "leaf_sha256": leaf})
        case "drop":
            del lines[place]
        case "swap":
            lines[place], lines[other] = lines[other], lines[place]
        case "repeat":
            lines.insert(place, lines[place])
        case "cut":
            del lines[place : len(rows) + 1]
        case "seq":
            lines[place] = json.dumps({**document, "seq": len(rows) + place})
    with pytest.raises(EvidenceFaultError) as caught:
        verify_export(lines)
    assert "row" in caught.value.facts


@given(n=st.integers(1, 700), old=st.integers(0, 700), flip=st.integers(0, 10_000), data=st.data())
@settings(deadline=None, max_examples=60)
def test_proof_of_a_log_with_one_other_leaf_is_never_accepted(n: int, old: int, flip: int, data: st.DataObject) -> None:
    old = min(old, n)
    leaves = [hashlib.sha256(f"{number}".encode()).digest() for number in range(n)]
    rewritten = list(leaves)
    where = flip % max(1, old)
    rewritten[where] = hashlib.sha256(b"another").digest()
    before = TreeHead(size=old, root=Sha256Hex(root_from_leaf_hashes(leaves[:old]).hex()))
    after = TreeHead(size=n, root=Sha256Hex(root_from_leaf_hashes(rewritten).hex()))
    honest = LogSubtrees().prove_consistency(old, n, lambda start, stop: rewritten[start:stop])
    nodes = [node.hex() for node in honest]
    # Whatever of the proof is also altered.
    if nodes and data.draw(st.booleans()):
        nodes[data.draw(st.integers(0, len(nodes) - 1))] = data.draw(st.sampled_from([*nodes, before.root, after.root]))
    if old == 0:
        verify_consistency(before, after, honest and nodes)
        return
    with pytest.raises(AuditProofInvalidError):
        verify_consistency(before, after, nodes)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
