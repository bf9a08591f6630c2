from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.audit.chain import AuditRow, LogTip, append_event
from fl_protocol.audit.checkpoint import Checkpoint, sign_checkpoint
from fl_protocol.audit.events import AuditEvent, AuditKind, event_bytes, event_from_bytes
from fl_protocol.audit.verify import AuditFault, AuditVerified, verify_log
from fl_protocol.ids import Sha256Hex
from fl_protocol.signing.signed import SignedBody
from fl_protocol.testing.entropy import seeded_signer

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
