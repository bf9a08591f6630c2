# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
"""What becomes of a release's sources reaches everything that was made from it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
import rfc8785
from sqlalchemy import func, select

from coordinator.db import models
from coordinator.errors import SiteNotActiveError
from coordinator.services.refusals import StatementInvalidError
from coordinator.services.release_adapter import withdraw_release
from coordinator.services.report_dataset_withdrawn import report_dataset_withdrawn
from coordinator.services.show_releases import show_release
from fl_protocol.ids import SiteId
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.testing.entropy import seeded_signer
from tests.support.released_run import FIRST, SECOND, THIRD, CompletedRuns, state_of

SITE = SiteId("charite")
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def runs(resources) -> CompletedRuns:
    return CompletedRuns(resources=resources)


@pytest.fixture
def generations(runs) -> tuple[str, str, str]:
    """Three candidates, each made from the one before: a run begins from the released weights at version 0."""
    runs.complete(FIRST, weights_from=0.0)
    first = runs.candidate(FIRST).release_id
    runs.complete(SECOND, initial=state_of(0, 0.0), weights_from=100.0)
    second = runs.candidate(SECOND).release_id
    runs.complete(THIRD, initial=state_of(0, 100.0), weights_from=200.0)
    return first, second, runs.candidate(THIRD).release_id


def statement(runs, *, site: str = SITE, at: datetime | str = START, **changes: object) -> SignedBody:
    document = {
        "site_id": site,
        "dataset": "medical-qa",
        "dataset_sha256": None,
        "reason": "consent-withdrawn",
        "at": at if isinstance(at, str) else at.isoformat(),
        **changes,
    }
    return sign_body(runs.sites[site], "WR/sig/dataset-withdrawn", rfc8785.dumps(document))


def marks(resources, release_id: str) -> list[tuple[str, str, str]]:
    return [(mark.kind, mark.cause, mark.reason) for mark in show_release(resources, release_id).marks]


def marked_in_log(resources) -> list[dict[str, object]]:
    query = select(models.AuditRow.body).where(models.AuditRow.kind == "release.marked").order_by(models.AuditRow.seq)
    return [json.loads(body)["facts"] for body in resources.db.read("test", lambda s: list(s.scalars(query)))]


def test_lineage_is_found_by_the_weights_that_a_run_began_from(resources, runs, generations, tmp_path) -> None:
    first, second, third = generations
    assert show_release(resources, first).descendants == (second, third)
    shown = show_release(resources, second)
    assert (shown.parents, shown.descendants) == ((first,), (third,))
    manifest = json.loads((runs.unpacked(second, tmp_path, is_candidate=True) / "manifest.json").read_text())
    digest = show_release(resources, first).manifest_sha256
    assert manifest["parents"] == [{"release_id": first, "manifest_sha256": digest}]


def test_withdrawal_marks_every_descendant_and_is_recorded_for_each(resources, runs, generations) -> None:
    first, second, third = generations
    runs.publish(FIRST)
    withdraw_release(resources, release_id=first, reason="error in the labels", actor="user:lead")
    mark = ("ancestor-withdrawn", first, "error in the labels")
    assert (marks(resources, first), marks(resources, second), marks(resources, third)) == ([], [mark], [mark])
    assert [show_release(resources, one).state for one in (second, third)] == ["CANDIDATE", "CANDIDATE"]
    assert [(facts["release_id"], facts["cause"]) for facts in marked_in_log(resources)] == [
        (second, first),
        (third, first),
    ]


def test_withdrawal_in_the_middle_leaves_the_ancestor_unmarked(resources, runs, generations) -> None:
    withdraw_release(resources, release_id=runs.publish(SECOND), reason="fault", actor="user:lead")
    assert [bool(marks(resources, one)) for one in generations] == [False, False, True]


def test_release_made_from_a_withdrawn_one_is_marked_when_it_is_made(resources, runs) -> None:
    runs.complete(FIRST)
    first = runs.publish(FIRST)
    withdraw_release(resources, release_id=first, reason="fault", actor="user:lead")
    runs.complete(SECOND, initial=state_of(0, 0.0), weights_from=100.0)
    second = runs.candidate(SECOND).release_id
    runs.complete(THIRD, initial=state_of(0, 100.0), weights_from=200.0)
    third = runs.candidate(THIRD).release_id
    assert marks(resources, second) == marks(resources, third) == [("ancestor-withdrawn", first, "fault")]


def test_who_signs_a_marked_candidate_signs_that_they_were_told(resources, runs, tmp_path) -> None:
    runs.complete(FIRST)
    first = runs.publish(FIRST)
    withdraw_release(resources, release_id=first, reason="fault", actor="user:lead")
    runs.complete(SECOND, initial=state_of(0, 0.0), weights_from=100.0)
    second = runs.publish(SECOND)
    approvals = json.loads((runs.unpacked(second, tmp_path) / "evidence" / "release_approvals.json").read_text())
    told = [one["marks"] for one in approvals["approvals"]["statements"]]
    assert told == [[f"ancestor-withdrawn {first}"]] * 2


def test_withdrawn_dataset_marks_the_releases_that_used_it_and_what_came_of_them(
    resources, runs, generations, clock
) -> None:
    clock.move(days=3)
    marked = report_dataset_withdrawn(resources, site_id=SITE, statement=statement(runs, at=clock.now()))
    assert marked == 3
    cause = f"charite/medical-qa@{clock.now().isoformat()}"
    for release_id in generations:
        assert marks(resources, release_id) == [("dataset-withdrawn", cause, "consent-withdrawn")]
    kinds = select(models.AuditRow.kind).where(models.AuditRow.kind.in_(["dataset.withdrawn", "release.marked"]))
    recorded = resources.db.read("test", lambda session: list(session.scalars(kinds)))
    assert sorted(recorded) == ["dataset.withdrawn", *["release.marked"] * 3]


def test_same_statement_again_is_the_same(resources, runs, generations, clock) -> None:
    said = statement(runs, at=clock.now())
    assert report_dataset_withdrawn(resources, site_id=SITE, statement=said) == 3
    assert report_dataset_withdrawn(resources, site_id=SITE, statement=said) == 0
    count = select(func.count()).select_from(models.DatasetWithdrawal)
    assert resources.db.read("test", lambda session: session.scalar(count)) == 1
    assert len(marked_in_log(resources)) == 3


def test_descendant_is_marked_though_the_site_was_not_in_its_own_run(resources, runs, clock) -> None:
    runs.complete(FIRST)
    first = runs.publish(FIRST)
    runs.complete(SECOND, initial=state_of(0, 0.0), weights_from=100.0, counted=("st-mary", "ucsf"))
    second = runs.candidate(SECOND).release_id
    report_dataset_withdrawn(resources, site_id=SITE, statement=statement(runs, at=clock.now()))
    assert len(marks(resources, first)) == len(marks(resources, second)) == 1


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({"dataset": "another-dataset"}, ("st-mary", "charite", "ucsf")),
        ({}, ("st-mary", "ucsf")),
    ],
    ids=["of another name", "of a site that was not counted"],
)
def test_release_that_did_not_use_the_dataset_is_not_marked(resources, runs, clock, changes, counted) -> None:
    runs.complete(FIRST, counted=counted)
    release_id = runs.candidate(FIRST).release_id
    assert report_dataset_withdrawn(resources, site_id=SITE, statement=statement(runs, at=clock.now(), **changes)) == 0
    assert marks(resources, release_id) == []


def test_rounds_after_the_withdrawal_used_another_dataset_of_the_name(resources, runs, clock) -> None:
    withdrawn_at = clock.now()
    clock.move(minutes=11)
    runs.complete(FIRST)
    release_id = runs.candidate(FIRST).release_id
    report_dataset_withdrawn(resources, site_id=SITE, statement=statement(runs, at=withdrawn_at))
    assert marks(resources, release_id) == []


def test_release_that_is_made_after_the_report_is_marked_when_it_is_made(resources, runs, clock) -> None:
    runs.complete(FIRST)
    clock.move(hours=1)
    report_dataset_withdrawn(resources, site_id=SITE, statement=statement(runs, at=clock.now()))
    assert [kind for kind, _, _ in marks(resources, runs.candidate(FIRST).release_id)] == ["dataset-withdrawn"]


@pytest.mark.parametrize(
    "changes",
    [
        {"site_id": "ucsf"},
        {"reason": "because"},
        {"dataset": ""},
        {"dataset": "x" * 129},
        {"dataset": "two\nlines"},
        {"dataset_sha256": "abc"},
        {"dataset_sha256": 7},
        {"at": "yesterday"},
        {"at": "2026-03-01T12:00:00"},
        {"at": "2036-03-01T12:00:00+00:00"},
        {"more": "keys"},
    ],
    ids=str,
)
def test_statement_that_is_none_is_refused_and_nothing_is_kept(resources, runs, changes) -> None:
    runs.complete(FIRST)
    runs.candidate(FIRST)
    said = statement(runs, **changes)
    with pytest.raises(StatementInvalidError):
        report_dataset_withdrawn(resources, site_id=SITE, statement=said)
    assert marked_in_log(resources) == []


def test_statement_that_another_key_signed_is_refused(resources, runs, generations, clock) -> None:
    honest = statement(runs, at=clock.now())
    for forged in (
        sign_body(seeded_signer("eve"), "WR/sig/dataset-withdrawn", honest.body),
        # The site's own key, for another kind of statement.
        sign_body(runs.sites[SITE], "WR/sig/approval", honest.body),
        SignedBody(body=honest.body + b" ", signature=honest.signature),
        SignedBody(body=b"[" * 4000, signature=honest.signature),
        SignedBody(body=b"\xff", signature=b""),
    ):
        with pytest.raises(StatementInvalidError):
            report_dataset_withdrawn(resources, site_id=SITE, statement=forged)


def test_site_that_was_revoked_is_not_heard(resources, runs, generations, clock) -> None:
    def revoke(session) -> None:
        session.get_one(models.Site, SITE).state = "REVOKED"

    resources.db.run_tx("test", revoke)
    with pytest.raises(SiteNotActiveError):
        report_dataset_withdrawn(resources, site_id=SITE, statement=statement(runs, at=clock.now()))


def test_statement_of_a_clock_that_runs_a_little_ahead_is_taken(resources, runs, generations, clock) -> None:
    said = statement(runs, at=clock.now() + timedelta(minutes=9))
    assert report_dataset_withdrawn(resources, site_id=SITE, statement=said) == 3
