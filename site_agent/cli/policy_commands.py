"""``wardround-site policy``: is the policy well formed, and what does it say of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fl_protocol.spec.adapters.adapter_spec import AdapterKind
from fl_protocol.spec.run_spec_parts import AlgorithmName, LocalRule
from fl_protocol.spec.tasks.task_spec import TaskKind
from site_agent.cli.console import REFUSED, console_of
from site_agent.cli.open_site import open_site
from site_agent.cli.run_page import RunPage, finding_document, findings_of, findings_table
from site_agent.policy.rules import ApprovalMode, SitePolicy
from site_agent.policy_file import load_policy_version

app = typer.Typer(no_args_is_help=True, help="What this hospital permits.")


@app.command()
def check(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A policy, in use or not yet.")],
) -> None:
    """Read a policy and list every fault, with its place.

    Example: wardround-site policy check policy.yaml
    """
    console = console_of(context)
    version = load_policy_version(file)
    policy = version.policy
    hours = None if policy.hours is None else str(policy.hours)
    document: dict[str, object] = {
        "is_valid": True,
        "policy_sha256": version.sha256,
        "tasks": sorted(policy.tasks),
        "base_models": sorted(policy.base_models),
        "adapters": {"kinds": sorted(policy.adapters.kinds), "max_rank": policy.adapters.max_rank},
        "algorithms": sorted(policy.algorithms),
        "local_rules": sorted(policy.local_rules),
        "datasets": {
            name: {
                "purposes": sorted(rule.purposes),
                "min_records": rule.min_records,
                "min_patients": rule.min_patients,
                "consent": None if rule.consent is None else sorted(rule.consent),
                "legal_basis": None if rule.legal_basis is None else sorted(rule.legal_basis),
            }
            for name, rule in sorted(policy.datasets.items())
        },
        "secure_aggregation": {
            "min_cohort": policy.secure_aggregation.min_cohort,
            "assumed_colluders": policy.secure_aggregation.assumed_colluders,
            "check_sums": policy.secure_aggregation.check_sums.value,
        },
        "privacy": {
            "without_dp": policy.privacy.without_dp.value,
            "smallest_cell": policy.privacy.smallest_cell,
            "rare_codes_in_sums": policy.privacy.rare_codes_in_sums.value,
        },
        "egress": {"max_bytes_per_round": policy.egress.max_bytes_per_round},
        "hours": {"train": hours},
        "approval": policy.approval.value,
        "approval_lifetime_days": policy.approval_lifetime_days,
        "remarks": list(_remarks(policy)),
    }
    console.answer(document, f"{file.name} is well formed.", *_remarks(policy))


@app.command()
def explain(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's identifier.")],
) -> None:
    """Hold a run against every rule of the policy; exit code 3 when one is not met.

    Example: wardround-site policy explain run-...
    """
    console = console_of(context)
    with open_site(console) as site:
        record, judgement = site.judge(run, now=console.clock.now())
    policy = judgement.policy
    is_automatic = policy.approval is ApprovalMode.AUTOMATIC
    page = RunPage(record=record, run_spec=record.run.run_spec(), judgement=judgement, now=console.clock.now())
    findings = findings_of(page, is_automatic=is_automatic)
    is_permitted = all(finding.is_met for finding in findings)
    document = {
        "run_id": record.run.run_id,
        "is_permitted": is_permitted,
        "approval": policy.approval.value,
        "policy_sha256": judgement.policy_sha256,
        "rules": [finding_document(finding) for finding in findings],
    }
    if is_permitted:
        end = (
            "Approved without a person."
            if is_automatic
            else f"Permitted. 'wardround-site runs approve {run}' says yes."
        )
    else:
        end = "Not permitted as it stands. policy.yaml is the hospital's to change."
    console.answer(document, findings_table(findings), "", end)
    if not is_permitted:
        raise typer.Exit(REFUSED)


def _remarks(policy: SitePolicy) -> tuple[str, ...]:
    """What a well-formed policy leaves closed, so that nobody wonders why every run is denied."""
    closed = {
        "tasks": not policy.tasks,
        "base_models": not policy.base_models,
        "adapters.kinds": not policy.adapters.kinds,
        "adapters.max_rank": policy.adapters.max_rank == 0,
        "algorithms": not policy.algorithms,
        "local_rules": not policy.local_rules,
        "datasets": not policy.datasets,
        "egress.max_bytes_per_round": policy.egress.max_bytes_per_round == 0,
    }
    names = [name for name, is_closed in closed.items() if is_closed]
    closing = (f"It permits no run yet: nothing is admitted under {', '.join(names)}.",) if names else ()
    return (*closing, *_unknown_names(policy))


def _unknown_names(policy: SitePolicy) -> Iterator[str]:
    """Names that no run of this version can have: a typing error denies what it was meant to admit.

    Not a fault: a policy may name what a later version brings, and one with a fault permits nothing at all.
    """
    for rule, names, known in (
        ("tasks", policy.tasks, TaskKind),
        ("adapters.kinds", policy.adapters.kinds, AdapterKind),
        ("algorithms", policy.algorithms, AlgorithmName),
        ("local_rules", policy.local_rules, LocalRule),
    ):
        if unknown := sorted(names - set(known)):
            yield f"{rule}: this version knows no {', '.join(unknown)}; it knows {', '.join(known)}."
