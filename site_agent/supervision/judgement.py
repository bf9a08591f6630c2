"""Asks the policy again at every round: it may have changed since the run was approved, and so may the datasets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sqlalchemy.orm import Session

from fl_protocol.clock import Clock
from fl_protocol.spec.secagg_params import SecAggParams
from site_agent.approvals.errors import ApprovalError
from site_agent.approvals.ledger import site_ledger_for
from site_agent.approvals.run_records import is_paused
from site_agent.datasets.registry import RegisteredDataset, find_dataset
from site_agent.db.tx import SiteDb
from site_agent.enrolment.identity_file import SiteIdentity
from site_agent.errors import RoundRefusedError
from site_agent.policy.evaluate import Denied, evaluate_hours, evaluate_run
from site_agent.policy.reading import PolicyFaultsError
from site_agent.policy.rules import SitePolicy, SumCheckMode
from site_agent.policy_file import load_policy
from site_agent.supervision.approved_runs import ApprovedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """What this site's own rules allow a round: the secure sum's parameters, and the data."""

    params: SecAggParams
    dataset: RegisteredDataset


class Judge(Protocol):
    """Says whether this site's rules permit a round of a run now."""

    def permit(self, run: ApprovedRun, *, is_training_ahead: bool) -> Permission:
        """The permission. Blocks on the disk: call it in a thread.

        Args:
            run: the approved run.
            is_training_ahead: whether the hours of training matter, and the steward's pause; an exchange that was
                entered is taken up again at any hour, and what a pause forbids in it is asked at each of its steps.

        Raises:
            RoundRefusedError: with the name of the rule that says no.
        """
        ...

    def sum_check_mode(self) -> SumCheckMode:
        """How published sums are checked. Blocks on the disk. Raises RoundRefusedError where there is no policy."""
        ...

    def assumed_colluders(self) -> int:
        """How many sites may lie to this one. Blocks on the disk. Raises RoundRefusedError as above."""
        ...


class PolicyJudge:
    """The judge over the policy file, the registry and the steward's switch."""

    def __init__(
        self, db: SiteDb, *, policy_path: Path, identity: SiteIdentity, peers: Mapping[str, str], clock: Clock
    ) -> None:
        """Take what the rules are about; the policy file is read anew at every question."""
        self._db = db
        self._policy_path = policy_path
        self._identity = identity
        self._peers = peers
        self._clock = clock

    def permit(self, run: ApprovedRun, *, is_training_ahead: bool) -> Permission:
        """See ``Judge``."""
        policy = self._policy()
        dataset = self._db.run_read(
            "judge-run", lambda session: self._judge(session, run, policy, is_training_ahead=is_training_ahead)
        )
        local_time = self._clock.now().astimezone().time()
        verdict = evaluate_hours(policy, local_time)
        if is_training_ahead and isinstance(verdict, Denied):
            raise RoundRefusedError("the policy says no at this hour", reason=verdict.rule, run_id=run.run_id)
        rule = policy.secure_aggregation
        params = SecAggParams(
            suite=run.spec.secure_aggregation.suite.value,
            min_cohort=max(run.spec.secure_aggregation.min_cohort, rule.min_cohort),
            assumed_colluders=rule.assumed_colluders,
        )
        return Permission(params=params, dataset=dataset)

    def sum_check_mode(self) -> SumCheckMode:
        """See ``Judge``."""
        return self._policy().secure_aggregation.check_sums

    def assumed_colluders(self) -> int:
        """See ``Judge``."""
        return self._policy().secure_aggregation.assumed_colluders

    def _policy(self) -> SitePolicy:
        try:
            return load_policy(self._policy_path)
        except PolicyFaultsError as error:
            # Default deny: without a readable policy nothing is permitted.
            raise RoundRefusedError("the policy cannot be read", reason="policy-unreadable") from error

    def _judge(
        self, session: Session, run: ApprovedRun, policy: SitePolicy, *, is_training_ahead: bool
    ) -> RegisteredDataset:
        if is_training_ahead and is_paused(session):
            raise RoundRefusedError("the steward paused this site", reason="site-paused", run_id=run.run_id)
        try:
            ledger = site_ledger_for(
                session, run_spec=run.spec, layout_json=run.layout_json, identity=self._identity, peers=self._peers
            )
        except ApprovalError as error:
            raise RoundRefusedError("the run's documents do not fit", reason=error.code, run_id=run.run_id) from error
        verdict = evaluate_run(run.spec, policy, ledger)
        if isinstance(verdict, Denied):
            raise RoundRefusedError("the policy says no", reason=verdict.rule, run_id=run.run_id)
        dataset = find_dataset(session, run.spec.data.dataset)
        if dataset is None or dataset.is_withdrawn or not dataset.path.exists():
            raise RoundRefusedError("the dataset is not there", reason="dataset-missing", run_id=run.run_id)
        return dataset
