"""Audit storage that fails stops a site: nothing leaves it unrecorded, whatever it was at; and it goes on after.

The site's own database refuses the insert, loses the table, or has a damaged tip, while the agent runs over it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_protocol.audit.events import AuditKind
from fl_protocol.clock import SystemClock
from fl_protocol.testing.entropy import seeded_signer
from site_agent.audit.store import AuditLog
from site_agent.db.tx import open_site_db
from site_agent.link import instructions as asked
from site_agent.session.events import Step

FederationOf = Callable[..., Any]

STORAGES = {
    "insert-refused": (
        "CREATE TRIGGER stop BEFORE INSERT ON audit_events BEGIN SELECT RAISE(ABORT, 'no'); END",
        "DROP TRIGGER stop",
    ),
    "table-gone": ("ALTER TABLE audit_events RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO audit_events"),
    "tip-damaged": (
        "CREATE TABLE kept AS SELECT tip FROM audit_tip; UPDATE audit_tip SET tip = x'00'",
        "UPDATE audit_tip SET tip = (SELECT tip FROM kept); DROP TABLE kept",
    ),
}


def run_in(database: Path, statements: str) -> None:
    connection = sqlite3.connect(database, timeout=30)
    connection.executescript(statements)
    connection.close()


@pytest.mark.parametrize(
    ("held_back", "step"),
    [
        (asked.TrainRound, None),
        (asked.OpenExchange, Step.ADVERTISE),
        (asked.RelayShares, Step.MASK),
        (asked.RelaySurvivors, Step.CONFIRM),
        (asked.RelayConfirmations, Step.REVEAL),
    ],
)
@pytest.mark.parametrize("storage", STORAGES)
async def test_site_whose_log_cannot_be_written_says_nothing_more_and_goes_on_when_it_can(
    federation_of: FederationOf, storage: str, held_back: type[object], step: Step | None
) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    coordinator, beta = federation.coordinator, federation.sites["beta"]
    breaking, mending = STORAGES[storage]
    # As the daemon does when it starts: the log is never empty.
    log, opened = AuditLog(seeded_signer("beta"), SystemClock(), "site:beta"), open_site_db(beta.folder / "site.db")
    opened.run_tx("start", lambda session: log.append(session, AuditKind.PROCESS_STARTED))
    opened.close()
    coordinator.holds_back = held_back
    told: list[str | None] = []
    state = {"is_broken": False, "n_looks": 0}

    def is_held() -> bool:
        if step is None:
            return True
        if step is Step.ADVERTISE:
            return len(coordinator.ready) == 3
        before = {Step.MASK: Step.SHARE, Step.CONFIRM: Step.MASK, Step.REVEAL: Step.CONFIRM}[step]
        return len(coordinator.messages(before)) == 3

    def is_stopped() -> bool:
        if not state["is_broken"]:
            if beta.db is not None and is_held():
                beta.db.watch_writes(told.append)
                run_in(beta.folder / "site.db", breaking)
                coordinator.holds_back, state["is_broken"] = None, True
            return False
        said = coordinator.accepted if step is None else set(coordinator.messages(step))
        if {"alpha", "gamma"} <= said:
            state["n_looks"] += 1
        return state["n_looks"] > 15 and any(told)

    await federation.run(is_stopped)
    said = coordinator.accepted if step is None else set(coordinator.messages(step))
    assert said == {"alpha", "gamma"}
    assert coordinator.declined == []
    assert {code for code in told if code is not None} <= {"site-database-failed", "audit-log-damaged"}
    run_in(beta.folder / "site.db", mending)
    await federation.run_to_the_end()
    assert coordinator.declined == []
    for acknowledged in coordinator.acknowledged.values():
        assert len(set(acknowledged.values())) == 1
