"""M0 against everything this site holds: the numbered list of what must be true before it trains for a round.

 1. the pinned coordinator signed the manifest, and it is of the round that the instruction names;
 2. this site approved the run, its approval has not ended, and the manifest names exactly the approved RunSpec;
 3. the round is one of the run's, of the kind that its place demands, under the approved suite and audit window;
 4. the payload's layout is the one that this site derives from the RunSpec;
 5. the site's own policy, asked again, permits it, and the dataset and the base model are there;
 6. the coordinator's audit log, whose head the manifest names, continues every head of it that this site has seen;
 7. the manifest starts from the public state that this site computed (missing results are fetched and folded first),
    and names the result that led to it;
 8. no reveal is unresolved: after M9, a round from the same state needs the same survivors, and a round from another
    state needs the result of that very exchange (decision 2);
 9. the evaluation that its payload carries, of this adapter on this dataset, or the counts of this list of codes, was
    not revealed among sites that cannot be its survivors, in whichever round or run; an evaluation alone is never
    revealed twice (decision 1);
10. this attempt was never joined with another manifest, and attempts only rise. Joining is recorded.

A refusal tells the coordinator the rule's name and nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import RunId
from fl_protocol.secagg.reading import PeerVerifier
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import RoundContext
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.spec.round_spec import RoundKind, RoundManifest
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.spec.tasks.concept_vocabulary import ConceptVocabulary
from site_agent.datasets.registry import RegisteredDataset
from site_agent.errors import PublicStateError, RoundRefusedError
from site_agent.state.payload_memory import Evaluation, counts_name, evaluation_name, nothing_name
from site_agent.state.public_state import StoredState, adapter_digest
from site_agent.supervision.approved_runs import ApprovedRun, check_term, read_approved_run
from site_agent.supervision.judgement import Permission
from site_agent.supervision.seams import SiteSeams
from site_agent.supervision.settlement import Settler, read_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedRound:
    """A round that passed the list, with everything that the list looked up.

    Attributes:
        required_survivors: digest of the only survivor set that this site may sign; None when any will do.
        evaluation: what the payload carries beside training, by name.
    """

    round: RoundContext
    signed: SignedBody
    manifest: RoundManifest
    run: ApprovedRun
    layout: PayloadLayout
    params: SecAggParams
    peers: PeerVerifier
    dataset: RegisteredDataset
    base_model_dir: Path
    required_survivors: str | None
    evaluation: Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class _Described:
    """A round that passed the checks which need no public state."""

    round: RoundContext
    signed: SignedBody
    manifest: RoundManifest
    run: ApprovedRun
    layout: PayloadLayout
    permission: Permission
    base_model_dir: Path


class Admission:
    """Checks manifests."""

    def __init__(self, seams: SiteSeams, settler: Settler) -> None:
        """Work with these seams."""
        self._seams = seams
        self._settler = settler

    async def admit(self, round_context: RoundContext, signed: SignedBody) -> tuple[AdmittedRound, StoredState]:
        """Check M0 and record the round as joined.

        Raises:
            RoundRefusedError: a check said no.
            LinkError: proofs or missing results could not be fetched; nothing is recorded.
        """
        found = await asyncio.to_thread(self._describe, round_context, signed)
        await self._seams.witness.check(found.manifest, signed)
        state = await self._settler.catch_up(found.run, found.manifest)
        # Only now: a result that was folded just before may have resolved a reveal.
        admitted = await asyncio.to_thread(self._complete, found, state)
        await asyncio.to_thread(self._check_evaluation, admitted)
        await asyncio.to_thread(
            self._seams.book.join,
            round_context,
            manifest_sha256=hashlib.sha256(signed.encode()).hexdigest(),
            public_state_sha256=admitted.manifest.public_state_sha256,
        )
        return admitted, state

    def approved(self, run_id: RunId) -> ApprovedRun:
        """A run that this site approved. Blocks on the disk. Raises RoundRefusedError."""
        return self._seams.db.run_read("approved-run", lambda session: read_approved_run(session, run_id))

    def check_word(self, run_id: RunId) -> None:
        """Check that this site's approval of a run stands now. Blocks on the disk.

        Raises:
            RoundRefusedError: ``run-withdrawn``, ``run-not-approved``, ``approval-expired``.
        """
        now = self._seams.clock.now()

        def read(session: Session) -> None:
            read_approved_run(session, run_id)
            check_term(session, run_id, now)

        self._seams.db.run_read("approval-stands", read)

    def recall(self, round_context: RoundContext, signed: SignedBody) -> AdmittedRound:
        """A round that was joined before a restart, checked again but for the chain and its own evaluation.

        Raises:
            RoundRefusedError: a check says no now.
            PublicStateError: the state that the round starts from is gone.
        """
        found = self._describe(round_context, signed, is_restart=True)
        version = found.manifest.public_state_version
        state = self._seams.states.find(round_context.run_id, version)
        if state is None or state.sha256 != found.manifest.public_state_sha256:
            message = "the public state that the round starts from is not here"
            raise PublicStateError(message, run_id=round_context.run_id, version=version)
        return self._complete(found, state)

    def _describe(self, round_context: RoundContext, signed: SignedBody, *, is_restart: bool = False) -> _Described:
        """Checks 1 to 5. Blocks on the disk."""
        seams = self._seams
        manifest = read_manifest(signed, coordinator_spki=seams.coordinator_spki)
        named = RoundContext(
            run_id=manifest.run_id, round_index=manifest.round_index, round_attempt=manifest.round_attempt
        )
        if named != round_context:
            raise _refused("manifest-mismatch", "the manifest is of another round", manifest)
        run = self.approved(manifest.run_id)
        if not is_restart:
            self.check_word(manifest.run_id)
        _check_place(run, manifest)
        layout = run.payload_layout(manifest.kind)
        if layout.digest() != manifest.payload_layout_sha256:
            raise _refused("payload-layout-mismatch", "the payload has another layout", manifest)
        permission = seams.judge.permit(run, is_training_ahead=not is_restart)
        base_model_dir = seams.jobs.base_models.get(run.spec.base_model.name)
        is_seen = base_model_dir is not None and (seams.jobs.is_trainer_elsewhere or base_model_dir.is_dir())
        if base_model_dir is None or not is_seen:
            raise _refused("base-model-missing", "site.yaml names no folder for the base model", manifest)
        return _Described(
            round=round_context,
            signed=signed,
            manifest=manifest,
            run=run,
            layout=layout,
            permission=permission,
            base_model_dir=base_model_dir,
        )

    def _complete(self, found: _Described, state: StoredState) -> AdmittedRound:
        """Check 8, and the name of what the round evaluates. Blocks on the disk."""
        dataset = found.permission.dataset
        return AdmittedRound(
            round=found.round,
            signed=found.signed,
            manifest=found.manifest,
            run=found.run,
            layout=found.layout,
            params=found.permission.params,
            peers=PeerVerifier(approved=found.run.spec.cohort.pins),
            dataset=dataset,
            base_model_dir=found.base_model_dir,
            required_survivors=self._required_survivors(found.manifest),
            evaluation=evaluation_of(
                found.run.spec,
                found.manifest.kind,
                run_id=found.run.run_id,
                state=self._seams.states.load(state),
                dataset_sha256=dataset.sha256,
            ),
        )

    def _check_evaluation(self, admitted: AdmittedRound) -> None:
        """Check 9. Before masking it is asked again of the sites that are there; here it saves hours of training."""
        book, manifest = self._seams.book, admitted.manifest
        if admitted.evaluation.is_alone and book.is_spent(admitted.evaluation):
            message = "this evaluation was in a sum that was unmasked; it is never masked again"
            raise _refused("evaluation-revealed", message, manifest)
        evaluated_among = book.survivors_of(admitted.evaluation)
        if evaluated_among is not None and not evaluated_among.issubset(admitted.run.spec.cohort.names):
            message = "the evaluation of this adapter on this dataset is in a sum over sites that are not in this run"
            raise _refused("evaluation-revealed", message, manifest)

    def _required_survivors(self, manifest: RoundManifest) -> str | None:
        unresolved = [joined for joined in self._seams.book.joined(manifest.run_id) if joined.is_unresolved]
        own = (manifest.round_index, manifest.round_attempt)
        earlier = [joined for joined in unresolved if (joined.round.round_index, joined.round.round_attempt) != own]
        survivors = {joined.survivors_digest for joined in earlier}
        states = {joined.public_state_sha256 for joined in earlier}
        if not earlier:
            return None
        # A deterministic payload is never masked again, whoever survives (decision 1).
        is_repeatable = manifest.kind is RoundKind.TRAIN
        if not is_repeatable or states != {manifest.public_state_sha256} or len(survivors) != 1:
            message = "this site revealed shares for a sum whose result it has not seen"
            raise _refused("unresolved-reveal", message, manifest)
        return survivors.pop()


def evaluation_of(
    spec: RunSpec, kind: RoundKind, *, run_id: RunId, state: PublicState, dataset_sha256: str
) -> Evaluation:
    """The name of what a round's payload holds beside training, and whether it holds nothing else.

    Safety: what a vocabulary run counts follows from the list of codes and the dataset, whatever adapter v0 holds. By
    the adapter, a study lead could give one and the same counts as many names as he likes. Its last round evaluates
    nothing, whichever codes were published, and is held against no other run's.
    """
    if isinstance(spec.task, ConceptVocabulary):
        is_counted = kind is RoundKind.TRAIN
        of_list = counts_name(list_sha256=spec.base_model.sha256, dataset_sha256=dataset_sha256)
        return Evaluation(sha256=of_list if is_counted else nothing_name(run_id), is_alone=False)
    name = evaluation_name(adapter_sha256=adapter_digest(state), dataset_sha256=dataset_sha256)
    return Evaluation(sha256=name, is_alone=kind is RoundKind.EVALUATE)


def _check_place(run: ApprovedRun, manifest: RoundManifest) -> None:
    spec = run.spec
    if manifest.run_spec_sha256 != run.run_spec_sha256:
        raise _refused("run-spec-mismatch", "the manifest names another run spec", manifest)
    is_last = manifest.round_index == spec.rounds
    expected = RoundKind.EVALUATE if is_last else RoundKind.TRAIN
    if manifest.round_index > spec.rounds or manifest.kind is not expected:
        raise _refused("round-not-in-run", "the run has no such round", manifest)
    if manifest.public_state_version != manifest.round_index:
        raise _refused("public-state-mismatch", "a round starts from the state of its own number", manifest)
    agreed = spec.secure_aggregation
    if (manifest.suite, manifest.audit_window_s) != (agreed.suite.value, agreed.audit_window_s):
        raise _refused("secure-aggregation-mismatch", "suite or audit window are not the approved ones", manifest)
    if manifest.min_cohort < agreed.min_cohort:
        raise _refused("secure_aggregation.min_cohort", "the manifest admits too small a cohort", manifest)


def _refused(reason: str, message: str, manifest: RoundManifest) -> RoundRefusedError:
    return RoundRefusedError(
        message,
        reason=reason,
        run_id=manifest.run_id,
        round_index=manifest.round_index,
        round_attempt=manifest.round_attempt,
    )
