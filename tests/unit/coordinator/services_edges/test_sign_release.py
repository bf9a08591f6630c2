# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
"""Two persons, two roles, one manifest, each shown once more to be who they are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import rfc8785
from sqlalchemy import select

from coordinator.db import models
from coordinator.services.permissions import Principal, Role
from coordinator.services.reauthenticate import Shown
from coordinator.services.refusals import (
    FourEyesError,
    ManifestMismatchError,
    RateLimitedError,
    ReauthenticationError,
    RequestInvalidError,
    RoleInsufficientError,
    SignatureRoleTakenError,
    StateConflictError,
)
from coordinator.services.show_releases import ReleaseView, show_release
from coordinator.services.sign_release import SignatureRequest, sign_release
from coordinator.services.signing_passphrases import reset_passphrase, set_passphrase
from tests.support.released_run import PASSPHRASES, CompletedRuns
from wardround.evidence.release_folder import Standing, verify_release_folder


@pytest.fixture
def runs(resources) -> CompletedRuns:
    return CompletedRuns(resources=resources)


@pytest.fixture
def candidate(runs) -> str:
    runs.complete()
    return runs.candidate().release_id


def events(resources, kind: str) -> list[dict[str, object]]:
    query = select(models.AuditRow.body).where(models.AuditRow.kind == kind).order_by(models.AuditRow.seq)
    bodies = resources.db.read("test", lambda session: list(session.scalars(query)))
    return [json.loads(body) for body in bodies]


def sign(resources, release_id: str, signer: Principal, *, passphrase: str | None, **changes: object) -> ReleaseView:
    said = {"meaning": "fit", "manifest_sha256": show_release(resources, release_id).manifest_sha256, **changes}
    request = SignatureRequest(**said)
    shown = Shown(passphrase=passphrase)
    return sign_release(resources, release_id=release_id, request=request, signer=signer, shown=shown)


def test_first_signature_approves_and_the_second_persons_publishes(resources, runs, candidate, clock) -> None:
    after_first = runs.sign(candidate, "lead", meaning="reviewed")
    assert (after_first.state, after_first.approved_by, after_first.published_at) == ("APPROVED", "user:lead", None)
    clock.move(hours=1)
    after_second = runs.sign(candidate, "privacy", meaning="no objection")
    assert (after_second.state, after_second.published_at) == ("PUBLISHED", clock.now())
    assert [(one.user, one.role, one.meaning) for one in after_second.signatures] == [
        ("user:lead", "study-lead", "reviewed"),
        ("user:privacy", "privacy-officer", "no objection"),
    ]
    approved = events(resources, "release.approved")
    assert [(one["actor"], one["facts"]["role"], one["facts"]["meaning"]) for one in approved] == [
        ("user:lead", "study-lead", "reviewed"),
        ("user:privacy", "privacy-officer", "no objection"),
    ]
    digest = after_second.manifest_sha256
    assert {one["facts"]["manifest_sha256"] for one in approved} == {digest}
    assert {one["facts"]["authenticated_by"] for one in approved} == {"passphrase"}
    assert len(events(resources, "release.published")) == 1


def test_statements_lie_in_the_folder_and_name_the_manifest(resources, runs, candidate, tmp_path) -> None:
    runs.sign(candidate, "lead", meaning="reviewed")
    runs.sign(candidate, "privacy", meaning="no objection")
    folder = runs.unpacked(candidate, tmp_path)
    document = json.loads((folder / "evidence" / "release_approvals.json").read_text())["approvals"]
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert (document["manifest_sha256"], document["signatures_needed"]) == (digest, 2)
    assert {one["manifest_sha256"] for one in document["statements"]} == {digest}
    query = select(models.ReleaseSignature.statement).order_by(models.ReleaseSignature.role.desc())
    held = resources.db.read("test", lambda session: list(session.scalars(query)))
    assert [rfc8785.dumps(one) for one in document["statements"]] == held
    verified = verify_release_folder(folder)
    assert [(one.user, one.meaning) for one in verified.signatures] == [
        ("user:lead", "reviewed"),
        ("user:privacy", "no objection"),
    ]


def test_same_person_does_not_sign_twice_not_even_in_two_roles(resources, runs, candidate) -> None:
    both = runs.person("lead", Role.STUDY_LEAD, Role.PRIVACY_OFFICER)
    passphrase = PASSPHRASES["lead"]
    with pytest.raises(RequestInvalidError, match="which role"):
        sign(resources, candidate, both, passphrase=passphrase)
    sign(resources, candidate, both, passphrase=passphrase, role=Role.STUDY_LEAD)
    with pytest.raises(FourEyesError):
        sign(resources, candidate, both, passphrase=passphrase, role=Role.PRIVACY_OFFICER)
    assert show_release(resources, candidate).state == "APPROVED"
    refused = events(resources, "call.refused")
    assert [(one["actor"], one["facts"]["code"]) for one in refused] == [("user:lead", "four-eyes")]


def test_two_leads_are_two_persons_and_one_role(resources, runs, candidate) -> None:
    runs.sign(candidate, "lead")
    other = runs.person("other lead", Role.STUDY_LEAD)
    set_passphrase(resources, principal=other, passphrase="another lead's own", current=None)
    with pytest.raises(SignatureRoleTakenError):
        sign(resources, candidate, other, passphrase="another lead's own")
    assert show_release(resources, candidate).state == "APPROVED"


@pytest.mark.parametrize("roles", [(Role.ADMIN,), (Role.AUDITOR,), (Role.ADMIN, Role.AUDITOR)])
def test_who_holds_neither_signing_role_does_not_sign(resources, runs, candidate, roles) -> None:
    person = runs.person("somebody", *roles)
    set_passphrase(resources, principal=person, passphrase="somebody's very own", current=None)
    for role in (None, Role.STUDY_LEAD, *roles):
        with pytest.raises(RoleInsufficientError):
            sign(resources, candidate, person, passphrase="somebody's very own", role=role)


def test_signature_over_another_manifest_is_refused(resources, runs, candidate) -> None:
    with pytest.raises(ManifestMismatchError):
        sign(resources, candidate, runs.lead, passphrase=PASSPHRASES["lead"], manifest_sha256="0" * 64)


@pytest.mark.parametrize("meaning", ["", "   ", "m" * 501])
def test_signature_without_a_meaning_is_refused(resources, runs, candidate, meaning) -> None:
    with pytest.raises(RequestInvalidError):
        sign(resources, candidate, runs.lead, passphrase=PASSPHRASES["lead"], meaning=meaning)


def test_published_release_is_signed_no_more(resources, runs, candidate) -> None:
    runs.sign(candidate, "lead")
    runs.sign(candidate, "privacy")
    with pytest.raises(StateConflictError):
        runs.sign(candidate, "lead")


def test_one_signature_publishes_where_the_setting_says_so_and_the_folder_tells(resources, runs, tmp_path) -> None:
    alone = CompletedRuns(resources=replace(resources, is_release_signed_by_two=False))
    alone.complete()
    release_id = alone.candidate().release_id
    assert alone.sign(release_id, "lead").state == "PUBLISHED"
    folder = alone.unpacked(release_id, tmp_path)
    with pytest.raises(Exception, match="one person released this") as caught:
        verify_release_folder(folder)
    assert caught.value.facts["reason"] == "one-signature"
    assert len(verify_release_folder(folder, standing=Standing.ONE_SIGNATURE).signatures) == 1


# Re-authentication


@pytest.mark.parametrize(
    ("passphrase", "reason"),
    [(None, "passphrase-missing"), ("", "passphrase-missing"), ("correct horse batterz", "passphrase-wrong")],
)
def test_token_alone_does_not_sign(resources, runs, candidate, passphrase, reason) -> None:
    with pytest.raises(ReauthenticationError) as caught:
        sign(resources, candidate, runs.lead, passphrase=passphrase)
    assert caught.value.facts["reason"] == reason
    assert show_release(resources, candidate).state == "CANDIDATE"


def test_another_persons_passphrase_does_not_sign(resources, runs, candidate) -> None:
    assert runs.privacy
    with pytest.raises(ReauthenticationError):
        sign(resources, candidate, runs.lead, passphrase=PASSPHRASES["privacy"])


def test_person_without_a_passphrase_is_told_to_set_one(resources, runs, candidate) -> None:
    new = runs.person("new", Role.STUDY_LEAD)
    with pytest.raises(ReauthenticationError) as caught:
        sign(resources, candidate, new, passphrase="whatever it may be")
    assert caught.value.facts["reason"] == "passphrase-not-set"


def test_five_wrong_passphrases_lock_the_right_one_out_for_a_while(resources, runs, candidate, clock) -> None:
    for _ in range(5):
        with pytest.raises(ReauthenticationError):
            sign(resources, candidate, runs.lead, passphrase="a wild guess, again")
    with pytest.raises(RateLimitedError) as caught:
        runs.sign(candidate, "lead")
    assert caught.value.facts["retry_after_s"] == 901
    clock.move(minutes=15)
    assert runs.sign(candidate, "lead").state == "APPROVED"
    refused = events(resources, "call.refused")
    assert [one["facts"]["is_locked"] for one in refused] == [False] * 4 + [True]


def test_right_passphrase_forgets_the_wrong_ones_before(resources, runs, candidate) -> None:
    for _ in range(4):
        with pytest.raises(ReauthenticationError):
            sign(resources, candidate, runs.lead, passphrase="a wild guess, again")
    runs.sign(candidate, "lead")
    with pytest.raises(ReauthenticationError):
        set_passphrase(resources, principal=runs.lead, passphrase="the next passphrase", current="not the present one")
    set_passphrase(resources, principal=runs.lead, passphrase="the next passphrase", current=PASSPHRASES["lead"])


def test_token_alone_changes_no_passphrase(resources, runs) -> None:
    with pytest.raises(ReauthenticationError) as caught:
        set_passphrase(resources, principal=runs.lead, passphrase="the thief's passphrase", current=None)
    assert caught.value.facts["reason"] == "passphrase-missing"


@pytest.mark.parametrize("passphrase", ["", "elevenchars", "x" * 257])
def test_passphrase_of_a_bad_length_is_refused(resources, runs, passphrase) -> None:
    person = runs.person("new", Role.STUDY_LEAD)
    with pytest.raises(RequestInvalidError):
        set_passphrase(resources, principal=person, passphrase=passphrase, current=None)


def test_reset_lets_a_person_set_another_and_is_recorded(resources, runs, candidate) -> None:
    lead = runs.lead
    reset_passphrase(resources, user="lead", actor="user:admin")
    with pytest.raises(ReauthenticationError):
        runs.sign(candidate, "lead")
    set_passphrase(resources, principal=lead, passphrase="after the reset", current=None)
    assert [one["actor"] for one in events(resources, "passphrase.reset")] == ["user:admin"]
    assert [one["facts"]["is_first"] for one in events(resources, "passphrase.set")] == [True, True]


def test_no_passphrase_stands_in_the_database(resources, runs, candidate, tmp_path) -> None:
    runs.sign(candidate, "lead")
    resources.db.dispose()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"user:lead" in written
    for passphrase in PASSPHRASES.values():
        assert passphrase.encode() not in written
        assert hashlib.sha256(passphrase.encode()).hexdigest().encode() not in written
