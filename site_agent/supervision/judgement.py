"""Asks the policy again at every round: it may have changed since the run was approved, and so may the datasets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from sqlalchemy.orm import Session

from fl_protocol.audit.events import AuditKind
from fl_protocol.clock import Clock
from fl_protocol.ids import RunId
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.telemetry import site_metrics as metrics
from fl_protocol.telemetry.meter import Meter
from site_agent.approvals.decisions import audit_fact
from site_agent.approvals.errors import ApprovalError
from site_agent.approvals.ledger import site_ledger_for
from site_agent.approvals.run_records import find_run, is_paused
from site_agent.audit.store import AuditLog
from site_agent.datasets.registry import RegisteredDataset, find_dataset
from site_agent.db.tx import SiteDb
from site_agent.enrolment.identity_file import SiteIdentity
from site_agent.errors import RoundRefusedError
from site_agent.policy.evaluate import Allowed, Denied, evaluate_hours, evaluate_run, evaluate_term
from site_agent.policy.reading import PolicyFaultsError
from site_agent.policy.rules import SitePolicy, SumCheckMode
from site_agent.policy_file import PolicyVersion
from site_agent.supervision.approved_runs import ApprovedRun
from site_agent.supervision.policy_desk import PolicyDesk

_ACTOR = "agent"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    run: ApprovedRun
    policy: SitePolicy
    now: datetime
    is_training_ahead: bool


class PolicyJudge:
    """The judge over the policy file, the registry and the steward's switch."""

    def __init__(
        self,
        db: SiteDb,
        audit: AuditLog,
        *,
        policies: PolicyDesk,
        identity: SiteIdentity,
        peers: Callable[[], Mapping[str, str]],
        clock: Clock,
        is_data_elsewhere: bool = False,
        meter: Meter | None = None,
    ) -> None:
        """Take what the rules are about; the policy file is read anew at every question.

        ``is_data_elsewhere``: only the trainer sees the data, and says itself that a file is missing.
        """
        self._meter = meter or Meter(metrics.SITE_METRICS)
        self._db = db
        self._audit = audit
        self._policies = policies
        self._identity = identity
        self._peers = peers
        self._clock = clock
        self._is_data_elsewhere = is_data_elsewhere
        self._recorded: dict[RunId, tuple[str, Allowed | Denied]] = {}

    def permit(self, run: ApprovedRun, *, is_training_ahead: bool) -> Permission:
        """See ``Judge``."""
        version = self._policy()
        now = self._clock.now()
        asked = _Question(run=run, policy=version.policy, now=now, is_training_ahead=is_training_ahead)
        verdict, dataset = self._db.run_read("judge-run", lambda session: self._judge(session, asked))
        self._record(run.run_id, version, verdict)
        if isinstance(verdict, Denied):
            self._meter.count(metrics.POLICY_DENIALS, metrics.rule_label(verdict.rule))
            raise RoundRefusedError("this site's rules say no", reason=verdict.rule, run_id=run.run_id)
        if dataset is None or not (self._is_data_elsewhere or dataset.path.exists()):
            raise RoundRefusedError("the dataset is not there", reason="dataset-missing", run_id=run.run_id)
        policy = version.policy
        rule = policy.secure_aggregation
        params = SecAggParams(
            suite=run.spec.secure_aggregation.suite.value,
            min_cohort=max(run.spec.secure_aggregation.min_cohort, rule.min_cohort),
            assumed_colluders=rule.assumed_colluders,
        )
        return Permission(params=params, dataset=dataset)

    def sum_check_mode(self) -> SumCheckMode:
        """See ``Judge``."""
        return self._policy().policy.secure_aggregation.check_sums

    def assumed_colluders(self) -> int:
        """See ``Judge``."""
        return self._policy().policy.secure_aggregation.assumed_colluders

    def _policy(self) -> PolicyVersion:
        try:
            return self._policies.load()
        except PolicyFaultsError as error:
            # Default deny: without a readable policy nothing is permitted.
            raise RoundRefusedError("the policy cannot be read", reason="policy-unreadable") from error

    def _judge(self, session: Session, asked: _Question) -> tuple[Allowed | Denied, RegisteredDataset | None]:
        run, policy = asked.run, asked.policy
        if asked.is_training_ahead and is_paused(session):
            raise RoundRefusedError("the steward paused this site", reason="site-paused", run_id=run.run_id)
        try:
            ledger = site_ledger_for(
                session,
                run_spec=run.spec,
                layout_json=run.layout_json,
                identity=self._identity,
                peers=self._peers(),
                now=asked.now,
            )
        except ApprovalError as error:
            raise RoundRefusedError("the run's documents do not fit", reason=error.code, run_id=run.run_id) from error
        verdict = evaluate_run(run.spec, policy, ledger)
        if asked.is_training_ahead and isinstance(verdict, Allowed):
            verdict = _evaluate_now(session, asked)
        return verdict, find_dataset(session, run.spec.data.dataset)

    def _record(self, run_id: RunId, version: PolicyVersion, verdict: Allowed | Denied) -> None:
        """Record what the policy said of a run's round, under which version; the same again is not recorded again."""
        if isinstance(verdict, Denied):
            said = {
                "outcome": "denied",
                "rule": verdict.rule,
                "value": audit_fact(verdict.value),
                "limit": audit_fact(verdict.limit),
            }
            remembered: Allowed | Denied = replace(verdict, value=None)
        else:
            said, remembered = {"outcome": "allowed"}, verdict
        if self._recorded.get(run_id) == (version.sha256, remembered):
            return

        def write(session: Session) -> None:
            facts = {"run_id": run_id, "policy_sha256": version.sha256, **said}
            self._audit.append(session, AuditKind.POLICY_EVALUATED, _ACTOR, **facts)

        self._db.run_tx("record-evaluation", write)
        self._recorded[run_id] = (version.sha256, remembered)


def _evaluate_now(session: Session, asked: _Question) -> Allowed | Denied:
    """The rules that look at the clock: the hours of training, and the end of the approval."""
    term = find_run(session, asked.run.run_id).term()
    if term is None:
        raise RoundRefusedError("the run was never approved", reason="run-not-approved", run_id=asked.run.run_id)
    verdict = evaluate_term(term, asked.policy, asked.now)
    if isinstance(verdict, Denied):
        return verdict
    return evaluate_hours(asked.policy, asked.now.astimezone().time())
