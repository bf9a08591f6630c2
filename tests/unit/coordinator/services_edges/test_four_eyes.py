# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.db import models
from coordinator.rounds.run_machine import RunState
from coordinator.services.change_run_state import RunChange, change_run_state
from coordinator.services.refusals import FourEyesError, StateConflictError
from fl_protocol.ids import RunId
from fl_protocol.testing.run_specs import resolved_run_spec

RUN = RunId("run-" + "a" * 26)
MARIA, OTTO = "user:maria", "user:otto"


@pytest.fixture
def draft(resources, clock, layout) -> RunId:
    spec = resolved_run_spec({})
    row = models.Run(
        run_id=RUN,
        name=spec.name,
        state=RunState.DRAFT.value,
        run_spec_json=spec.canonical_bytes(),
        run_spec_sha256=spec.digest(),
        layout_json=layout.canonical_bytes(),
        layout_blob_sha256="0" * 64,
        initial_blob_sha256="0" * 64,
        public_state_version=0,
        public_state_sha256="0" * 64,
        public_state_blob_sha256="0" * 64,
        created_by=MARIA,
        created_at=clock.now(),
    )
    resources.db.run_tx("test", lambda session: session.add(row))
    return RUN


def test_creator_does_not_start_and_the_run_stays_a_draft(resources, draft) -> None:
    with pytest.raises(FourEyesError):
        change_run_state(resources, run_id=draft, change=RunChange.START, actor=MARIA)
    assert change_run_state(resources, run_id=draft, change=RunChange.START, actor=OTTO).state == "AWAITING_SITES"
    with pytest.raises(StateConflictError):
        change_run_state(resources, run_id=draft, change=RunChange.START, actor=MARIA)


def test_creator_starts_where_the_setting_says_so(resources, draft) -> None:
    alone = replace(resources, is_start_by_another=False)
    assert change_run_state(alone, run_id=draft, change=RunChange.START, actor=MARIA).state == "AWAITING_SITES"


def test_creator_may_cancel_alone(resources, draft) -> None:
    assert change_run_state(resources, run_id=draft, change=RunChange.CANCEL, actor=MARIA).state == "CANCELLED"
