from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from fl_protocol.audit.events import (
    NO_EVENT,
    AuditEvent,
    AuditEventInvalidError,
    AuditKind,
    RecordedEvent,
    event_bytes,
    event_from_bytes,
    instant_from_text,
    text_from_instant,
)

AT = datetime(2026, 1, 31, 12, 0, 0, 250, tzinfo=UTC)


def recorded(**facts: object) -> RecordedEvent:
    event = AuditEvent(kind=AuditKind.SITE_ENROLLED, at=AT, actor="site:st-mary", facts=facts)  # type: ignore[arg-type]
    return RecordedEvent(seq=4, prev="ab" * 32, event=event)


def test_bytes_of_an_event_are_canonical_json() -> None:
    expected = (
        '{"actor":"site:st-mary","at":"2026-01-31T12:00:00.000250Z","facts":{"a":true,"b":null,"n":3,"t":"é"},'
        '"kind":"site.enrolled","prev":"' + "ab" * 32 + '","seq":4}'
    )
    assert event_bytes(recorded(t="é", n=3, b=None, a=True)) == expected.encode()


def test_event_read_from_its_bytes_is_the_same() -> None:
    original = recorded(t="é", n=3, b=None, a=True)
    assert event_from_bytes(event_bytes(original)) == original


def test_every_kind_is_a_thing_and_what_happened_to_it() -> None:
    for kind in AuditKind:
        thing, _, happened = kind.value.partition(".")
        assert thing.isalpha()
        assert happened.isalpha()
        assert kind.name == kind.value.upper().replace(".", "_")


def test_kinds_of_both_parties_are_there() -> None:
    assert {
        "site.invited", "site.enrolled", "site.revoked", "site.suspended", "site.resumed", "run.created", "run.started",
        "run.approved", "run.declined", "run.state", "round.opened", "round.committed", "round.aborted",
        "exchange.opened", "exchange.failed", "upload.accepted", "upload.refused", "sum.published", "release.created",
        "release.approved", "policy.evaluated", "policy.loaded", "dataset.registered", "dataset.withdrawn",
        "training.started", "training.finished", "training.failed", "payload.masked", "payload.sent",
        "shares.revealed", "result.verified", "result.refused", "peer.added", "peer.removed", "enrolment.completed",
        "call.refused",
    } <= {kind.value for kind in AuditKind}  # fmt: skip


@pytest.mark.parametrize("at", [datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1)))])  # noqa: DTZ001
def test_event_at_an_instant_that_is_not_utc_is_refused(at: datetime) -> None:
    with pytest.raises(AuditEventInvalidError):
        AuditEvent(kind=AuditKind.RUN_CREATED, at=at, actor="user:a")


@pytest.mark.parametrize("actor", ["", "a\nb"])
def test_event_without_a_printable_actor_is_refused(actor: str) -> None:
    with pytest.raises(AuditEventInvalidError):
        AuditEvent(kind=AuditKind.RUN_CREATED, at=AT, actor=actor)


@pytest.mark.parametrize("value", [1.5, b"x", ["a"], {"a": 1}, 2**53, -(2**53), "\ud800"])
def test_fact_that_has_no_single_form_is_refused(value: object) -> None:
    with pytest.raises(AuditEventInvalidError):
        recorded(x=value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"seq":4', b'"seq":4.0'),
        (b'"seq":4', b'"seq":-1'),
        (b'"seq":4', b'"seq":true'),
        (b'"seq":4', b'"seq":4,"x":1'),
        (b'"seq":4', b'"seq": 4'),
        (b'"seq":4', b'"seq":4,"seq":4'),
        (b'"seq":4', b'"seq":1152921504606846976'),
        (b'"facts":{}', b'"facts":{"a":"\\ud800"}'),
        (b'"facts":{}', b'"facts":{"\\ud800":1}'),
        (b'"facts":{}', b'"facts":' + b"[" * 100_000),
        (b"site.enrolled", b"site.eaten"),
        (b'"facts":{}', b'"facts":[]'),
        (b'"facts":{}', b'"facts":{"a":1.5}'),
        (b"12:00:00.000250Z", b"12:00:00Z"),
        (b"12:00:00.000250Z", b"12:00:00.25Z"),
        (b'"actor":"site:st-mary",', b""),
        (b"}", b""),
    ],
)
def test_bytes_of_another_form_are_refused(old: bytes, new: bytes) -> None:
    data = event_bytes(recorded())
    assert old in data
    with pytest.raises(AuditEventInvalidError):
        event_from_bytes(data.replace(old, new))


def test_instant_has_one_text_whatever_its_zone() -> None:
    there = AT.astimezone(timezone(timedelta(hours=-5)))
    assert text_from_instant(there) == text_from_instant(AT) == "2026-01-31T12:00:00.000250Z"
    assert instant_from_text(text_from_instant(AT)) == AT


def test_first_event_points_at_zeros() -> None:
    assert NO_EVENT == "00" * 32
