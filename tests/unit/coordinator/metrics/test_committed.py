"""Counted is what was committed: once, whatever was run again, and nothing of what was taken back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.migrate import migrate
from coordinator.db.notes import note
from coordinator.db.tx import Database
from coordinator.errors import DatabaseUnwritableError
from coordinator.metrics.committed import CommittedCounts
from coordinator.rounds.events import AbortReason, ExchangeFailure
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.rounds.instructions import RoundRef
from coordinator.rounds.round_machine import RoundState
from coordinator.rounds.run_machine import RunState
from coordinator.services.effect_kinds import EffectKind
from coordinator.services.phase_moves import PhaseMoved
from fl_protocol.audit.events import AuditEvent, AuditKind
from fl_protocol.ids import RunId
from fl_protocol.telemetry import coordinator_metrics as metrics
from fl_protocol.telemetry.meter import Meter

NOW = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
ROUND = RoundRef(run_id=RunId("run-" + "a" * 26), round_index=2, round_attempt=0)
PLACE = {"run_id": ROUND.run_id, "round_index": 2, "round_attempt": 0}


def values(meter: Meter) -> dict[str, float]:
    """Every sample that is not 0, with its labels' values behind its name."""
    return {
        "/".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(meter.exposition().decode())
        for sample in family.samples
        if sample.value
    }


@pytest.fixture
def meter() -> Meter:
    return Meter(metrics.COORDINATOR_METRICS)


@pytest.fixture
def counts(meter: Meter) -> CommittedCounts:
    return CommittedCounts(meter)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database.from_path(tmp_path / "coordinator.db")
    migrate(made.engine)
    yield made
    made.dispose()


def event(kind: AuditKind, at: datetime = NOW, **facts: str | int) -> AuditEvent:
    return AuditEvent(kind=kind, at=at, actor="coordinator", facts={**PLACE, **facts})


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (metrics.ROUNDS_ABORTED, AbortReason),
        (metrics.EXCHANGES_FAILED, ExchangeFailure),
        (metrics.RUNS, RunState),
        (metrics.EFFECT_FAILURES, EffectKind),
    ],
)
def test_list_of_a_label_is_the_machines_own(metric: metrics.Metric, words: type) -> None:
    assert set(metric.labels[0].values) == {word.value for word in words}  # type: ignore[attr-defined]


def test_transaction_that_was_run_again_is_counted_once(
    database: Database, meter: Meter, counts: CommittedCounts
) -> None:
    database.watch(counts)
    tries: list[int] = []

    def record(session: Session) -> None:
        tries.append(1)
        append_audit(session, AuditKind.ROUND_COMMITTED, actor="coordinator", facts=PLACE, now=NOW)
        if len(tries) == 1:
            raise RuntimeError("taken back")

    with pytest.raises(RuntimeError):
        database.run_tx("record", record)
    assert values(meter) == {}
    database.run_tx("record", record)
    assert values(meter) == {
        "wardround_coordinator_audit_appends_total": 1.0,
        "wardround_coordinator_rounds_total": 1.0,
    }


def test_transaction_that_could_not_be_kept_is_counted_by_its_code(
    tmp_path: Path, database: Database, meter: Meter, counts: CommittedCounts
) -> None:
    # The file of an earlier version of the world: it lacks every table.
    shutil.copyfile("/dev/null", tmp_path / "empty.db")
    empty = Database.from_path(tmp_path / "empty.db")
    empty.watch(counts)
    with pytest.raises(DatabaseUnwritableError):
        empty.run_tx(
            "record",
            lambda session: append_audit(session, AuditKind.RUN_CREATED, actor="coordinator", facts=PLACE, now=NOW),
        )
    empty.dispose()
    assert values(meter) == {"wardround_coordinator_audit_failures_total/database-unwritable": 1.0}


def test_notes_of_several_transactions_in_one_commit_are_told_apart(database: Database) -> None:
    told: list[tuple[object, ...]] = []

    class Listening:
        def committed(self, notes: list[object]) -> None:
            told.append(tuple(notes))

        def failed(self, code: str) -> None:
            raise AssertionError(code)

    database.watch(Listening())  # type: ignore[arg-type]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(lambda number: database.run_tx("note", lambda session: note(session, number)), range(40)))
    assert sorted(told) == [(number,) for number in range(40)]


def test_events_are_counted_by_what_they_say(meter: Meter, counts: CommittedCounts) -> None:
    counts.committed(
        [
            event(AuditKind.ROUND_ABORTED, reason="quorum-not-reached"),
            event(AuditKind.EXCHANGE_FAILED, reason="dealer-blamed"),
            event(AuditKind.SUM_PUBLISHED),
            event(AuditKind.UPLOAD_ACCEPTED, site_id="st-mary", n_bytes=4096),
            event(AuditKind.UPLOAD_REFUSED, site_id="charite", reason="altered"),
        ]
    )
    assert values(meter) == {
        "wardround_coordinator_audit_appends_total": 5.0,
        "wardround_coordinator_rounds_aborted_total/quorum-not-reached": 1.0,
        "wardround_coordinator_exchanges_failed_total/dealer-blamed": 1.0,
        "wardround_coordinator_exchanges_total": 1.0,
        "wardround_coordinator_uploads_total/accepted": 1.0,
        "wardround_coordinator_uploads_total/refused": 1.0,
        "wardround_coordinator_upload_bytes_total": 4096.0,
    }


def test_phase_is_as_long_as_from_its_beginning_to_its_end(meter: Meter, counts: CommittedCounts) -> None:
    def moved(left: RoundState | ExchangeState, entered: RoundState | ExchangeState, after_s: float) -> PhaseMoved:
        return PhaseMoved(round=ROUND, left=left, entered=entered, at=NOW + timedelta(seconds=after_s))

    counts.committed([event(AuditKind.ROUND_OPENED)])
    counts.committed([moved(RoundState.TRAINING, RoundState.EXCHANGING, 90.0)])
    counts.committed([event(AuditKind.EXCHANGE_OPENED, at=NOW + timedelta(seconds=90), exchange_index=0)])
    counts.committed([moved(ExchangeState.ADVERTISING, ExchangeState.SHARING, 92.0)])
    counts.committed([moved(ExchangeState.SHARING, ExchangeState.FAILED, 99.0)])
    # Its beginning was another process's.
    counts.committed([moved(ExchangeState.REVEALING, ExchangeState.SUMMED, 120.0)])
    sums = {
        name.rpartition("/")[2]: value
        for name, value in values(meter).items()
        if name.startswith("wardround_coordinator_phase_seconds_sum")
    }
    assert sums == {"training": 90.0, "advertising": 2.0, "sharing": 7.0}
