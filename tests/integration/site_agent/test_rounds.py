"""Agents through whole rounds: exact states everywhere, deaths at every call, and a coordinator that does not play."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from fl_protocol.audit.events import AuditEvent, event_from_bytes
from fl_protocol.codec.errors import NonFiniteUpdateError
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import RunId, SiteId
from fl_protocol.packing import pack, unpack
from fl_protocol.secagg import coordinator_role
from fl_protocol.secagg.sealing import HpkeSealer
from fl_protocol.spec.context import ExchangeContext, RoundContext
from fl_protocol.testing.entropy import seeded_signer
from site_agent.db.models import AuditEventRow, RunLedgerRow, SiteSwitchRow
from site_agent.db.tx import open_site_db
from site_agent.jobs.job_dir import JobFailure, JobResult, JobSpec, read_result, write_result
from site_agent.jobs.runner import succeeded
from site_agent.link import instructions as asked
from site_agent.session.events import DeclineKind, Step
from site_agent.state.payload_memory import Evaluation, MaskedCohort, RevealedExchange, evaluation_name
from site_agent.state.public_state import adapter_digest
from site_agent.supervision.status_board import TrainingFailure

FederationOf = Callable[..., Any]


def assert_states_agree(federation: Any) -> None:
    coordinator = federation.coordinator
    for acknowledged in coordinator.acknowledged.values():
        assert len(set(acknowledged.values())) == 1
    for index, (_, published) in coordinator.results.items():
        body = coordinator.acknowledged[index][coordinator.site_ids[0]]
        run_id, _, result, state = unpack(body, 4)
        assert result == hashlib.sha256(published.message).digest()
        assert run_id == published.exchange.run_id.encode()
        if index >= coordinator.spec.rounds - 1:
            assert state.hex() == coordinator.state.digest()


def weighted_mean_by_hand(federation: Any, round_index: int) -> np.ndarray:
    """What FedAvg is, in float64, from the trainers' own updates (all sites have 200 records)."""
    updates = []
    for site in federation.sites.values():
        update = np.random.default_rng(site.runner.seeds[round_index]).normal(size=12).astype(np.float32) / 10
        norm = np.linalg.norm(update.astype(np.float64))
        updates.append(update.astype(np.float64) * min(1.0, 1.0 / norm))
    return np.mean(updates, axis=0)


async def test_run_ends_with_the_same_state_everywhere_and_the_weighted_mean(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=2)
    initial: PublicState = federation.coordinator.state
    await federation.run_to_the_end()
    assert_states_agree(federation)
    expected = np.concatenate([initial.adapter[name].ravel() for name in sorted(initial.adapter)]).astype(np.float64)
    for round_index in range(2):
        expected += weighted_mean_by_hand(federation, round_index)
    final = federation.coordinator.state
    found = np.concatenate([final.adapter[name].ravel() for name in sorted(final.adapter)])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert federation.coordinator.declined == []


async def test_run_leaves_no_update_no_key_and_no_loss_behind(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    await federation.run_to_the_end()

    def left_over() -> list[Path]:
        folders = [site.folder / name for site in federation.sites.values() for name in ("jobs", "journal")]
        try:
            return [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        except FileNotFoundError as error:
            # A folder went while it was being listed: it was there, so look again.
            return [Path(str(error.filename))]

    # The last acknowledgement may have cut the last deletions short; the next start makes good for it.
    await federation.run(lambda: not left_over())
    assert {report[1:] for report in federation.coordinator.progress} == {("training", 1, 10)}


@pytest.mark.parametrize("has_arrived", [False, True])
@pytest.mark.parametrize("call", ["accept", "ready", "M1", "M3", "M5", "M7", "M9", "acknowledge"])
async def test_site_that_dies_at_a_call_comes_back_and_says_the_same(
    federation_of: FederationOf, call: str, has_arrived: bool
) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    dying = federation.sites["beta"]
    dying.client.dies_at = (call, has_arrived)
    # FakeCoordinator.hear fails the test when a site says two different things in one exchange.
    await federation.run_to_the_end()
    assert dying.n_deaths == 1
    assert_states_agree(federation)


@pytest.mark.parametrize("has_arrived", [False, True])
@pytest.mark.parametrize("call", ["accept", "ready", "M1", "M3", "M5", "M7", "M9", "acknowledge"])
async def test_call_without_an_answer_is_made_again_and_nothing_is_trained_twice(
    federation_of: FederationOf, call: str, has_arrived: bool
) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    deaf = federation.sites["beta"]
    deaf.client.hears_nothing_at = (call, has_arrived)
    await federation.run_to_the_end()
    assert deaf.client.hears_nothing_at is None
    assert federation.coordinator.declined == []
    # The round of training, and the evaluation after it.
    assert len(deaf.runner.seeds) == 2
    assert_states_agree(federation)


async def test_site_that_dies_while_masked_does_not_train_again(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    dying = federation.sites["gamma"]
    dying.client.dies_at = ("M7", False)
    await federation.run_to_the_end()
    assert len(dying.runner.seeds) == len(federation.sites["alpha"].runner.seeds) == 2


async def test_exchange_that_failed_before_reveal_is_run_again_with_other_masks(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    coordinator = federation.coordinator
    coordinator.holds_back = asked.RelaySurvivors
    await federation.run(lambda: len(coordinator.uploads) == 3)
    first = {site: vector.copy() for site, vector in coordinator.uploads.items()}
    coordinator.open_exchange(1)
    await federation.run(lambda: len(coordinator.uploads) == 3)
    for site, vector in coordinator.uploads.items():
        assert not np.any(vector.ring64 == first[site].ring64)
    coordinator.holds_back = None
    await federation.run_to_the_end()
    assert_states_agree(federation)
    # Trained once a round, whatever happened to the exchange.
    assert all(len(site.runner.seeds) == 2 for site in federation.sites.values())


async def test_second_survivor_set_across_a_restart_is_refused(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=4, rounds=1)
    coordinator = federation.coordinator
    await federation.run(lambda: len(coordinator.messages(Step.CONFIRM)) == 4)
    uploaded = coordinator.messages(Step.MASK)
    fewer = {site: header for site, header in uploaded.items() if site != "delta"}
    other = coordinator_role.make_m6(coordinator_role.freeze_survivors(coordinator.frozen["sharers"], fewer))
    confirmed = dict(coordinator.messages(Step.CONFIRM))
    coordinator.exchange_instruction = lambda site: asked.RelaySurvivors(exchange=coordinator.context, message=other)
    refused = []
    board = federation.sites["alpha"]

    def is_refused() -> bool:
        refused.append(board.client.coordinator.messages(Step.CONFIRM))
        return len(refused) > 40

    await federation.run(is_refused)
    assert coordinator.messages(Step.CONFIRM) == confirmed


async def test_second_survivor_set_after_the_journal_was_rolled_back_is_refused(federation_of: FederationOf) -> None:
    """A restored backup of the journal knows nothing of M7; the flag in the database does."""
    federation = federation_of(n_sites=4, rounds=1)
    coordinator, alpha = federation.coordinator, federation.sites["alpha"]
    coordinator.holds_back = asked.RelaySurvivors
    await federation.run(lambda: len(coordinator.uploads) == 4)
    # Nothing is under way when the sites are stopped: a thread that takes a step would write into the journal below.
    coordinator.holds_back = asked.RelayConfirmations
    backup = alpha.folder / "backup"
    shutil.copytree(alpha.folder / "journal", backup)
    await federation.run(lambda: len(coordinator.messages(Step.CONFIRM)) == 4)
    confirmed = dict(coordinator.messages(Step.CONFIRM))
    shutil.rmtree(alpha.folder / "journal")
    backup.rename(alpha.folder / "journal")
    fewer = {site: m5 for site, m5 in coordinator.messages(Step.MASK).items() if site != "delta"}
    other = coordinator_role.make_m6(coordinator_role.freeze_survivors(coordinator.frozen["sharers"], fewer))
    coordinator.exchange_instruction = lambda site: asked.RelaySurvivors(exchange=coordinator.context, message=other)
    await federation.run(lambda: bool(coordinator.declined))
    assert coordinator.messages(Step.CONFIRM) == confirmed
    assert coordinator.declined[0] == ("alpha", DeclineKind.REFUSED, "one-shot-spent")


async def test_round_aborted_after_reveal_is_joined_again_for_the_same_survivors_only(
    federation_of: FederationOf,
) -> None:
    federation = federation_of(n_sites=4, rounds=1)
    coordinator = federation.coordinator
    coordinator.commit = lambda: None
    await federation.run(lambda: len(coordinator.messages(Step.REVEAL)) == 4)
    coordinator.abandons.append(coordinator.round)
    coordinator.round_attempt = 1
    coordinator.open_round()
    # All four survive again: the sum is taken, and the run goes on.
    del coordinator.commit
    await federation.run_to_the_end()
    assert_states_agree(federation)
    assert coordinator.declined == []


async def test_round_aborted_after_reveal_is_not_confirmed_for_other_survivors(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=4, rounds=1)
    coordinator = federation.coordinator
    coordinator.commit = lambda: None
    await federation.run(lambda: len(coordinator.messages(Step.REVEAL)) == 4)
    coordinator.abandons.append(coordinator.round)
    coordinator.round_attempt = 1
    coordinator.site_ids = coordinator.site_ids[:3]
    coordinator.open_round()
    del federation.sites["delta"]
    await federation.run(lambda: len({site for site, *_ in coordinator.declined}) == 3)
    assert {reason for _, _, reason in coordinator.declined} == {"unresolved-reveal"}
    assert coordinator.uploads == {}
    assert coordinator.messages(Step.CONFIRM) == {}


async def test_round_repeated_among_fewer_sites_before_any_reveal_still_works(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=4, rounds=1)
    coordinator = federation.coordinator
    coordinator.holds_back = asked.RelaySurvivors
    await federation.run(lambda: len(coordinator.uploads) == 4)
    coordinator.holds_back = None
    coordinator.abandons.append(coordinator.round)
    coordinator.round_attempt = 1
    coordinator.site_ids = coordinator.site_ids[:3]
    coordinator.open_round()
    del federation.sites["delta"]
    await federation.run_to_the_end()
    assert_states_agree(federation)
    assert coordinator.declined == []


def reveal_in_another_run(site: Any, initial: PublicState, survivors: tuple[SiteId, ...]) -> None:
    """The site's book after it revealed the evaluation of this adapter in a run of its own past."""
    seams = site.seams()
    run_id = RunId("run-" + "c" * 26)
    earlier = RoundContext(run_id=run_id, round_index=0, round_attempt=0)
    context = ExchangeContext(run_id=run_id, round_index=0, round_attempt=0, exchange_index=0, exchange_attempt=0)
    name = evaluation_name(adapter_sha256=adapter_digest(initial), dataset_sha256="cd" * 32)
    evaluation = Evaluation(sha256=name, is_alone=False)
    seams.book.join(earlier, manifest_sha256="11" * 32, public_state_sha256="22" * 32)
    cohort = MaskedCohort(context=context, sites=frozenset(survivors), threshold=3)
    seams.book.claim_mask(cohort, payload_sha256="33" * 32, evaluation=evaluation)
    seams.book.ensure_revealed(
        RevealedExchange(context=context, h_survivors=bytes(32)), survivors=survivors, evaluation=evaluation
    )
    seams.book.record_settled(context, result_sha256="44" * 32, public_state_sha256="55" * 32)
    site.db.close()


async def test_second_run_that_evaluates_the_same_adapter_over_one_site_less_is_declined_before_training(
    federation_of: FederationOf,
) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    coordinator, alpha = federation.coordinator, federation.sites["alpha"]
    reveal_in_another_run(alpha, coordinator.state, (*coordinator.site_ids, SiteId("delta")))
    await federation.run(lambda: bool(coordinator.declined))
    assert coordinator.declined[0] == ("alpha", DeclineKind.REFUSED, "evaluation-revealed")
    assert alpha.runner.seeds == []


async def test_second_run_that_evaluates_the_same_adapter_over_one_site_more_is_refused_before_masking(
    federation_of: FederationOf,
) -> None:
    federation = federation_of(n_sites=4, rounds=1)
    coordinator, alpha = federation.coordinator, federation.sites["alpha"]
    reveal_in_another_run(alpha, coordinator.state, coordinator.site_ids[:3])
    await federation.run(lambda: bool(coordinator.declined))
    assert coordinator.declined[0] == ("alpha", DeclineKind.REFUSED, "evaluation-revealed")
    assert "alpha" not in coordinator.uploads


async def test_second_run_that_evaluates_the_same_adapter_over_the_same_sites_is_joined(
    federation_of: FederationOf,
) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    coordinator = federation.coordinator
    reveal_in_another_run(federation.sites["alpha"], coordinator.state, coordinator.site_ids)
    await federation.run_to_the_end()
    assert coordinator.declined == []


@pytest.mark.parametrize(
    ("held_back", "last_said"), [(asked.RelayShares, Step.SHARE), (asked.RelayConfirmations, Step.CONFIRM)]
)
@pytest.mark.parametrize("reason", ["run-withdrawn", "approval-expired", "site-paused"])
async def test_steward_stops_an_exchange_under_way(
    federation_of: FederationOf, reason: str, held_back: type[object], last_said: Step
) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    coordinator, alpha = federation.coordinator, federation.sites["alpha"]
    coordinator.holds_back = held_back

    def say_no(session: Session) -> None:
        if reason == "site-paused":
            session.add(SiteSwitchRow(name="paused", is_on=True, set_at="now", set_by="steward"))
        elif reason == "approval-expired":
            session.get_one(RunLedgerRow, coordinator.round.run_id).expires_at = "2026-01-02T03:04:05.000000Z"
        else:
            session.get_one(RunLedgerRow, coordinator.round.run_id).state = "withdrawn"

    def is_declined() -> bool:
        if coordinator.holds_back is not None and len(coordinator.messages(last_said)) == 3:
            alpha.db.run_tx("steward", say_no)
            coordinator.holds_back = None
        # The word to the coordinator goes before the end of the round is recorded.
        return bool(coordinator.declined) and ("participation.state", reason) in audited(alpha)

    await federation.run(is_declined)
    assert coordinator.declined[0] == ("alpha", DeclineKind.REFUSED, reason)
    # In this very exchange, not in the next round.
    assert (coordinator.round.round_index, coordinator.results) == (0, {})
    assert "alpha" not in coordinator.messages(Step.REVEAL)
    if held_back is asked.RelayShares:
        assert "alpha" not in coordinator.uploads


def audited(site: Any) -> list[tuple[str, object]]:
    """Kind and reason of everything that a site recorded."""
    return [(event.kind.value, event.facts.get("reason")) for event in events_of(site)]


def events_of(site: Any) -> list[AuditEvent]:
    """Everything that a site recorded."""
    db = open_site_db(site.folder / "site.db")
    bodies = db.run_read("rows", lambda session: list(session.scalars(select(AuditEventRow.body))))
    db.close()
    return [event_from_bytes(body).event for body in bodies]


async def test_dealer_that_cheats_is_complained_of_and_the_next_attempt_succeeds(
    federation_of: FederationOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    coordinator = federation.coordinator
    honest = HpkeSealer.seal

    def seal(self: HpkeSealer, plaintext: bytes, *, public: bytes, info: bytes) -> bytes:
        is_first = (coordinator.round_index, coordinator.exchange_attempt) == (0, 0)
        is_betrayal = is_first and info.endswith(pack(b"beta", b"alpha"))
        return honest(self, bytes(len(plaintext)) if is_betrayal else plaintext, public=public, info=info)

    monkeypatch.setattr(HpkeSealer, "seal", seal)
    await federation.run(lambda: bool(coordinator.complaints))
    assert {site for site, _ in coordinator.complaints} == {"alpha"}
    complaint = coordinator_role.check_complaint(
        coordinator.frozen["cohort"], coordinator.complaints[0][1], sender=SiteId("alpha")
    )
    assert complaint.dealer == "beta"
    coordinator.open_exchange(1)
    await federation.run_to_the_end()
    assert_states_agree(federation)


async def test_evaluation_revealed_is_never_masked_again(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    coordinator = federation.coordinator
    await federation.run(lambda: coordinator.round_index == 1)
    coordinator.commit = lambda: None
    await federation.run(lambda: len(coordinator.messages(Step.REVEAL)) == 3)
    coordinator.abandons.append(coordinator.round)
    coordinator.round_attempt = 1
    coordinator.open_round()
    await federation.run(lambda: len({site for site, *_ in coordinator.declined}) == 3)
    assert {reason for _, _, reason in coordinator.declined} == {"unresolved-reveal"}
    assert not coordinator.uploads


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"public_state_sha256": "ee" * 32}, "public-state-mismatch"),
        ({"run_spec_sha256": "ee" * 32}, "run-spec-mismatch"),
        ({"previous_result_sha256": "ee" * 32}, "previous-result-mismatch"),
        ({"payload_layout_sha256": "ee" * 32}, "payload-layout-mismatch"),
        ({"min_cohort": 2}, "secure_aggregation.min_cohort"),
        ({"audit_window_s": 1}, "secure-aggregation-mismatch"),
        ({"round_index": 1}, "manifest-mismatch"),
    ],
)
async def test_manifest_that_is_not_what_the_site_holds_is_declined_with_the_rule(
    federation_of: FederationOf, changes: dict[str, object], reason: str
) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    coordinator = federation.coordinator
    coordinator.manifest = coordinator.make_manifest(**changes)
    await federation.run(lambda: len(coordinator.declined) >= 3)
    assert {said for _, _, said in coordinator.declined} == {reason}
    assert not any(site.runner.seeds for site in federation.sites.values())


async def test_manifest_of_an_impostor_is_declined(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    coordinator = federation.coordinator
    coordinator.signer = seeded_signer("an impostor")
    coordinator.manifest = coordinator.make_manifest()
    await federation.run(lambda: len(coordinator.declined) >= 3)
    assert {said for _, _, said in coordinator.declined} == {"manifest-unverified"}


async def test_update_that_is_not_finite_never_becomes_ready(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)

    def spoil(raw: dict[str, np.ndarray]) -> None:
        raw["adapter_update"][3] = np.nan

    federation.sites["beta"].runner.spoils = spoil
    coordinator = federation.coordinator
    jobs = federation.sites["beta"].folder / "jobs"
    await federation.run(lambda: bool(coordinator.declined) and not list(jobs.rglob("payload.safetensors")))
    assert coordinator.declined[0] == ("beta", DeclineKind.FAILED, NonFiniteUpdateError.code)
    assert "beta" not in coordinator.ready


async def test_word_that_a_trainer_makes_up_of_its_failure_does_not_leave(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    made_up = "mrn-4711.born-1950-05-23"

    async def fail(job_dir: Path, job: JobSpec, **_: object) -> JobResult:
        write_result(job_dir, JobFailure(code=made_up, message=made_up, advice=made_up, facts={made_up: made_up}))
        return succeeded(read_result(job_dir), job)

    beta = federation.sites["beta"]
    beta.runner.run_training_job = fail
    coordinator = federation.coordinator
    await federation.run(lambda: bool(coordinator.declined))
    assert coordinator.declined[0] == ("beta", DeclineKind.FAILED, "trainer-failed")
    # Nor into the log that auditors and other sites are shown.
    failed = [event.facts["code"] for event in events_of(beta) if event.kind.value == "training.failed"]
    assert failed == ["trainer-failed"]
    assert not [event for event in events_of(beta) if made_up in str(event.facts)]


async def test_steward_is_shown_where_a_job_failed_and_nobody_else_is(
    federation_of: FederationOf, capsys: pytest.CaptureFixture[str]
) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    beta, coordinator = federation.sites["beta"], federation.coordinator
    # The name of the dataset's own file, which is beta's folder here, stands in the register alone.
    facts = {"file": beta.folder.name, "table": "drug_exposure.csv", "record": 12, "field": "completion"}
    failure = JobFailure(code="dataset-malformed", message="a field is missing", advice="Mend the file.", facts=facts)
    train = beta.runner.run_training_job
    shown: list[TrainingFailure | None] = []

    async def fail(job_dir: Path, job: JobSpec, **_: object) -> JobResult:
        beta.runner.run_training_job = train
        write_result(job_dir, failure)
        return succeeded(read_result(job_dir), job)

    def is_over() -> bool:
        if coordinator.declined and not shown:
            shown.append(beta.board.status.training_failure)
            coordinator.abandons.append(coordinator.round)
            coordinator.round_attempt = 1
            coordinator.open_round()
        return "beta" in coordinator.ready

    beta.runner.run_training_job = fail
    await federation.run(is_over)
    assert shown == [
        TrainingFailure(
            run_id=coordinator.round.run_id,
            round_index=0,
            code="dataset-malformed",
            message="a field is missing",
            advice="Mend the file.",
            facts={"dataset": "medical-qa", "table": "drug_exposure.csv", "record": 12, "field": "completion"},
        )
    ]
    assert beta.board.status.training_failure is None, "a job was done since"
    assert coordinator.declined[0] == ("beta", DeclineKind.FAILED, "dataset-malformed")
    assert "drug_exposure.csv" not in capsys.readouterr().out
    assert not [event for event in events_of(beta) if "drug_exposure.csv" in str(event.facts)]


async def test_training_that_breaks_in_a_way_nobody_foresaw_is_said_and_ends_the_round(
    federation_of: FederationOf,
) -> None:
    federation = federation_of(n_sites=3, rounds=1)

    async def break_down(*_: object, **__: object) -> JobResult:
        raise ValueError("mrn-4711")

    beta = federation.sites["beta"]
    beta.runner.run_training_job = break_down
    coordinator = federation.coordinator
    # It says so first, and records the end once that was heard.
    recorded = ("participation.state", "unexpected-failure")
    await federation.run(lambda: bool(coordinator.declined) and recorded in audited(beta))
    assert coordinator.declined[0] == ("beta", DeclineKind.FAILED, "unexpected-failure")
    assert not [event for event in events_of(beta) if "4711" in str(event.facts)]


async def test_sum_that_was_altered_is_not_folded(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    coordinator = federation.coordinator
    honest = coordinator.commit

    def lie() -> None:
        before = coordinator.round_index
        honest()
        manifest, published = coordinator.results[before]
        altered = coordinator.blobs[published.sum_blob_sha256][:-1] + b"\x01"
        digest = hashlib.sha256(altered).hexdigest()
        coordinator.blobs[digest] = altered
        coordinator.results[before] = (
            manifest,
            asked.PublishedResult(
                exchange=published.exchange,
                message=published.message,
                sum_blob_sha256=digest,
                sum_bytes=published.sum_bytes,
            ),
        )

    coordinator.commit = lie
    await federation.run(lambda: bool(coordinator.results))
    await federation.run(_counted(40))
    assert coordinator.acknowledged.get(0, {}) == {}
    assert not list(federation.sites["alpha"].folder.glob("states/*/v1.safetensors"))


async def test_exchange_for_a_round_that_was_lost_is_declined_at_once(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    coordinator = federation.coordinator
    coordinator.ready.update(coordinator.site_ids)
    await federation.run(lambda: len(coordinator.declined) >= 3)
    assert {(kind, reason) for _, kind, reason in coordinator.declined} == {(DeclineKind.FAILED, "payload-lost")}


async def test_status_shows_the_loss_to_the_steward_only(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    site = federation.sites["alpha"]
    loop = site.loop()
    board = loop._seams.board
    board.write()
    document = json.loads((site.folder / "status.json").read_text())
    assert document["site_id"] == "alpha"
    assert {"state", "connected", "run_id", "round_index", "activity", "step", "steps", "loss", "updated_at"} <= set(
        document
    )
    site.db.close()


async def test_later_attempt_supersedes_the_round_that_is_held(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    coordinator = federation.coordinator
    await federation.run(lambda: len(coordinator.ready) == 3)
    first = coordinator.round
    coordinator.round_attempt = 1
    coordinator.open_round()
    await federation.run_to_the_end()
    assert coordinator.results[0][1].exchange.round_attempt == 1
    assert first == RoundContext(run_id=first.run_id, round_index=0, round_attempt=0)
    seeds = federation.sites["alpha"].runner.seeds
    assert len(set(seeds)) == len(seeds) == 3


def _counted(n: int) -> Callable[[], bool]:
    turns = iter(range(n))
    return lambda: next(turns, None) is None
