"""A run on one page: all that a steward approves, from the exact bytes whose digest is signed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from rich.console import RenderableType

from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.algorithm import Publishes
from fl_protocol.spec.metrics import SITE_FLAGS, counted_by_trainer, counts_of
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.run_spec_parts import AlgorithmName, LocalRule, Quantization
from fl_protocol.spec.tasks.concept_vocabulary import ConceptVocabulary
from fl_protocol.spec.tasks.image_text_adapter import ImageTextAdapter
from fl_protocol.spec.tasks.image_text_contrastive import ImageTextContrastive
from site_agent.approvals.approve_run import Judgement
from site_agent.approvals.run_records import STANDING, RunRecord
from site_agent.cli.console import table
from site_agent.db.instants import instant_text
from site_agent.policy.evaluate import SiteLedger, hours_finding, permitted_purposes, term_finding, unlisted_peers
from site_agent.policy.explain import ExplainedFinding, explain_finding, explain_run


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    """A run, what it is judged by, and when."""

    record: RunRecord
    run_spec: RunSpec
    judgement: Judgement
    now: datetime


def run_document(page: RunPage) -> dict[str, object]:
    """The page as a document."""
    record, run_spec, judgement = page.record, page.run_spec, page.judgement
    return {
        "run_id": record.run.run_id,
        "name": record.run.name,
        "state": record.state,
        "reason": record.reason,
        "run_spec_sha256": record.run.run_spec_sha256,
        "run_spec": run_spec.to_document(),
        "payload_bytes": judgement.ledger.payload_bytes,
        "unlisted_peers": list(unlisted_peers(run_spec, judgement.ledger)),
        "permitted_purposes": sorted(permitted_purposes(run_spec.data.dataset, judgement.policy, judgement.ledger)),
        "cohort_sha256": run_spec.cohort.digest(),
        "approved_by": record.approved_by,
        "approved_at": None if record.approved_at is None else instant_text(record.approved_at),
        "expires_at": None if record.expires_at is None else instant_text(record.expires_at),
        "policy_sha256": judgement.policy_sha256,
        "rules": [finding_document(finding) for finding in findings_of(page)],
    }


def page_lines(page: RunPage) -> list[RenderableType]:
    """The page for people."""
    record, spec, judgement = page.record, page.run_spec, page.judgement
    facts: list[tuple[str, object]] = [
        ("run", record.run.run_id),
        ("state", record.state if record.reason is None else f"{record.state} ({record.reason})"),
        ("approval", _approval(page)),
        ("purpose", spec.purpose),
        ("task", f"{spec.task.kind}, {spec.rounds} rounds of {spec.local.steps} steps"),
        *classes_of(spec),
        *_learning(spec),
        ("base model", _base_model(spec)),
        ("adapter", spec.adapter.summary),
        ("dataset", f"{spec.data.dataset}, at least {spec.data.min_records} records"),
        ("each sum", f"at least {spec.secure_aggregation.min_cohort} sites of {len(spec.cohort.sites)}"),
        *_publishes(spec),
        ("privacy", f"clip norm {spec.privacy.clip_norm:g}, noise: {spec.privacy.mechanism}"),
        ("leaves a round", f"{judgement.ledger.payload_bytes} masked bytes: {in_the_sum(spec)}"),
        ("specification", f"sha256:{record.run.run_spec_sha256}"),
    ]
    return [
        f"{record.run.name}",
        "",
        table(("", ""), facts),
        "",
        "Sites (keys compared out of band are 'listed'):",
        *_roster_lines(spec, judgement.ledger),
        "",
        "Policy:",
        findings_table(findings_of(page)),
    ]


def in_the_sum(run_spec: RunSpec) -> str:
    """What a training round adds up over its sites, in words; each of it leaves this site inside the sum only."""
    if run_spec.aggregation.algorithm is AlgorithmName.THRESHOLDED_COUNTS:
        return "patients of each code, and whether there are any; the weight"
    parts = [
        "the update, times its weight",
        "the weight",
        "whether it was clipped",
        "loss and its units in training and on held-out records, and how many these are",
    ]
    counts = counted_by_trainer(run_spec.evaluation.metrics)
    if counts:
        parts.append(f"counts for the metrics ({', '.join(counts)})")
    parts += [SITE_FLAGS[name] for name in counts_of(run_spec.evaluation.metrics) if name in SITE_FLAGS]
    if run_spec.local.rule is LocalRule.SCAFFOLD:
        parts.append("the change of the control variate, which follows from the update")
    if run_spec.aggregation.algorithm is AlgorithmName.FEDMED:
        parts.append("one weight a layer, between a bound and 1")
        parts.append("whether the update reaches the threshold")
    return "; ".join(parts)


def classes_of(spec: RunSpec) -> list[tuple[str, object]]:
    """What a run for images tells apart, and by which public sentences; nothing for other runs."""
    if not isinstance(spec.task, ImageTextAdapter | ImageTextContrastive):
        return []
    return [(f"class {one.name}", "; ".join(one.prompts)) for one in spec.task.classes]


def findings_table(findings: tuple[ExplainedFinding, ...]) -> RenderableType:
    """Rules as a table; those that are not met say what they demand."""
    rows = [
        (
            "met" if finding.is_met else "DENIED",
            finding.rule,
            finding.value,
            finding.limit,
            "" if finding.is_met else finding.sentence,
        )
        for finding in findings
    ]
    return table(("", "rule", "run", "policy", ""), rows)


def finding_document(finding: ExplainedFinding) -> dict[str, object]:
    """One rule as a document."""
    return {
        "rule": finding.rule,
        "is_met": finding.is_met,
        "value": finding.value,
        "limit": finding.limit,
        "sentence": finding.sentence,
    }


def findings_of(page: RunPage, *, is_automatic: bool = False) -> tuple[ExplainedFinding, ...]:
    """Every rule that a round of the run must meet now: the run's own, the hours, and the end of the approval."""
    policy = page.judgement.policy
    findings = explain_run(page.run_spec, policy, page.judgement.ledger, is_automatic=is_automatic)
    now = [hours_finding(policy, page.now.astimezone().time())]
    term = page.record.term()
    if term is not None and page.record.state in STANDING:
        now.append(term_finding(term, policy, page.now))
    return (*findings, *(explain_finding(finding) for finding in now))


def _approval(page: RunPage) -> str:
    record, term = page.record, page.record.term()
    if term is None or record.state not in STANDING:
        return "none"
    last = term.last_instant(page.judgement.policy)
    ends = "ended" if last <= page.now else "ends"
    return f"by {record.approved_by} at {term.approved_at:%Y-%m-%d %H:%M} UTC, {ends} at {last:%Y-%m-%d %H:%M} UTC"


def _learning(spec: RunSpec) -> list[tuple[str, object]]:
    """By which rules sites train and their sums are folded; a run that counts does neither."""
    if spec.aggregation.algorithm is AlgorithmName.THRESHOLDED_COUNTS:
        return [("aggregation", "thresholded-counts: nothing is trained")]
    weighted = f"weighted by records, at most {spec.privacy.weight_cap} a site"
    return [
        ("local training", spec.local.summary),
        ("aggregation", f"{spec.aggregation.summary}; {weighted}"),
    ]


def _publishes(spec: RunSpec) -> list[tuple[str, object]]:
    """What has to be read where more is summed than published."""
    if ALGORITHMS[spec.aggregation.algorithm].publishes is not Publishes.FOLD or not isinstance(
        spec.task, ConceptVocabulary
    ):
        return []
    task = spec.task
    shown = (
        f"nothing of a code that fewer than {task.threshold} patients have; else counts, to whoever has it"
        if task.hides_rare_codes
        else f"counts of all codes, to the coordinator and checking sites; yours from {task.site_minimum} on"
    )
    return [
        ("publishes", f"codes of at least {task.threshold} patients at {task.min_sites} sites, without their counts"),
        ("the sum shows", shown),
    ]


def _base_model(spec: RunSpec) -> str:
    """Its name and digest, and with how many bits it is loaded where the run says so."""
    base = spec.base_model
    bits = "" if base.quantization is Quantization.NONE else f", loaded as {base.quantization}"
    return f"{base.name}  sha256:{base.sha256}{bits}"


def _roster_lines(run_spec: RunSpec, ledger: SiteLedger) -> list[str]:
    """Two lines a site: a fingerprint that is compared by eye is never broken."""
    unlisted = set(unlisted_peers(run_spec, ledger))
    lines: list[str] = []
    for site in run_spec.cohort.sites:
        word = "this site" if site.name == ledger.site_id else "NOT LISTED" if site.name in unlisted else "listed"
        lines.extend([f"  {site.name}: {word}", f"    {site.signing_key_sha256}"])
    return lines
