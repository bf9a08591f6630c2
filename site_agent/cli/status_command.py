"""``wardround-site status``: what the agent does now, and what waits for a person."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import typer
from cryptography import x509
from sqlalchemy.orm import Session

from fl_protocol.pki.tls import certificate_from_pem
from site_agent.approvals.run_records import PENDING, STANDING, RunRecord, is_paused, list_runs, unsent_statements
from site_agent.audit.store import audit_head
from site_agent.cli.console import console_of
from site_agent.cli.open_site import open_site
from site_agent.datasets.registry import RegisteredDataset, list_datasets
from site_agent.db.instants import instant_from_text, instant_text
from site_agent.enrolment.renewal import renewal_instant
from site_agent.policy.reading import PolicyFaultsError
from site_agent.policy_file import load_policy_version
from site_agent.state.disk_space import free_bytes, used_bytes

_FRESH_FOR = timedelta(seconds=60)
_SOON = timedelta(days=14)


def status(context: typer.Context) -> None:
    """Show what the agent does now and what waits for a person.

    Example: wardround-site status
    """
    console = console_of(context)

    now = console.clock.now()

    def read(session: Session) -> dict[str, object]:
        runs = list_runs(session)
        head = audit_head(session)
        return {
            "is_paused": is_paused(session),
            "runs": [{"run_id": run.run.run_id, "name": run.run.name, "state": run.state} for run in runs],
            "n_pending": sum(run.state == PENDING for run in runs),
            "n_unsent_statements": len(unsent_statements(session)),
            "datasets": [dataset.name for dataset in list_datasets(session)],
            "ending": [*_ending_approvals(runs, now), *_ending_datasets(list_datasets(session), now)],
            "audit": {"size": head.size, "head": head.root},
        }

    with open_site(console) as site:
        certificate = certificate_from_pem(site.identity.certificate_pem)
        document = {"site_id": site.identity.site_id, **site.db.run_read("read_status", read)}
        document["policy"] = policy = _policy_standing(site.settings.policy_path)
    agent = read_agent_status(console.folder.status_json, now=now)
    document["agent"] = agent
    planned = agent.get("certificate_renews_at") if agent.get("is_running") else None
    document["certificate"] = {
        "not_after": instant_text(certificate.not_valid_after_utc),
        "renews_at": planned or instant_text(renewal_instant(certificate, 0.5)),
        "has_ended": certificate.not_valid_after_utc <= console.clock.now(),
    }
    folder = console.folder
    disk = {
        "free_bytes": free_bytes(folder.root),
        "jobs_bytes": used_bytes(folder.jobs_dir),
        "journal_bytes": used_bytes(folder.journal_dir),
        "states_bytes": used_bytes(folder.states_dir),
        "database_bytes": sum(path.stat().st_size for path in folder.root.glob("site.db*")),
    }
    document["disk"] = disk
    n_used = sum(disk.values()) - disk["free_bytes"]
    datasets = document["datasets"]
    listed = ", ".join(map(str, datasets)) if isinstance(datasets, list) and datasets else "none registered"
    lines = [
        f"Site      {document['site_id']}" + (" (paused)" if document["is_paused"] else ""),
        f"Agent     {_agent_line(agent)}",
        f"Identity  {_certificate_line(certificate, now=console.clock.now())}",
        f"Datasets  {listed}",
        f"Audit     {site_audit_line(document['audit'])}",
        f"Disk      {_mib(n_used)} MiB used by this site, {_mib(disk['free_bytes'])} MiB free",
    ]
    if not policy["is_readable"]:
        lines.append(
            "Policy    CANNOT BE READ, so nothing is permitted: 'wardround-site policy check FILE' lists its faults"
        )
    ending = document["ending"]
    lines.extend(f"Ending    {line}" for line in (ending if isinstance(ending, list) else ()))
    lines += _trouble_lines(agent)
    if document["n_pending"]:
        lines.append(f"Waiting   {document['n_pending']} run(s) for your word: 'wardround-site runs pending'")
    if document["n_unsent_statements"]:
        lines.append(
            f"Unsent    {document['n_unsent_statements']} statement(s); the agent sends them when it is connected"
        )
    console.answer(document, *lines)


def _ending_approvals(runs: Sequence[RunRecord], now: datetime) -> Iterator[str]:
    """Approvals that have ended or will soon: nothing renews them, so a person has to know."""
    for record in runs:
        if record.state not in STANDING or record.expires_at is None or record.expires_at > now + _SOON:
            continue
        ends = "has ended" if record.expires_at <= now else f"ends at {record.expires_at:%Y-%m-%d %H:%M} UTC"
        yield f"the approval of {record.run.name} {ends}: 'wardround-site runs approve {record.run.run_id} --until DAY'"


def _ending_datasets(datasets: Sequence[RegisteredDataset], now: datetime) -> Iterator[str]:
    for dataset in datasets:
        if dataset.expires_on is not None and dataset.is_expired(now + _SOON):
            day = "is over" if dataset.is_expired(now) else f"is {dataset.expires_on}"
            yield f"the last day of the dataset {dataset.name} {day}"


def _policy_standing(path: Path) -> dict[str, object]:
    try:
        return {"is_readable": True, "sha256": load_policy_version(path).sha256}
    except PolicyFaultsError as error:
        return {"is_readable": False, "sha256": error.file_sha256}


def read_agent_status(path: Path, *, now: datetime) -> dict[str, object]:
    """What the running agent wrote last; ``is_running`` is False where that is old or nothing."""
    try:
        said = json.loads(path.read_bytes())
        updated_at = instant_from_text(str(said["updated_at"]))
    except (OSError, ValueError, KeyError, TypeError):
        return {"is_running": False}
    return {**said, "is_running": now - updated_at < _FRESH_FOR and said.get("state") != "stopped"}


def site_audit_line(audit: object) -> str:
    """Size and head in one line."""
    known = audit if isinstance(audit, Mapping) else {}
    return f"{known.get('size', 0)} rows, head {str(known.get('head', ''))[:16]}"


def _certificate_line(certificate: x509.Certificate, *, now: datetime) -> str:
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if certificate.not_valid_after_utc <= now:
        return f"certificate ended {until}; the agent recovers it by the signing key when it runs"
    return f"certificate until {until}, renewed around {renewal_instant(certificate, 0.5):%Y-%m-%d %H:%M}"


def _mib(n_bytes: int) -> int:
    return -(-n_bytes >> 20)


_CANNOT_RECORD = {
    "site-disk-full": "the disk is full. It goes on by itself once there is room",
    "audit-log-damaged": "the audit log cannot be continued. Run 'wardround-site audit verify', and restore a backup",
}
_REFUSALS = {
    "history-forked": "the coordinator's audit log is not the one that this site saw. Ask its operator whether an older"
    " copy of its database was put back, and keep this site's log: 'wardround-site audit export FILE'",
    "history-unproven": "the coordinator does not prove that its audit log continues what this site saw. Its operator"
    " should upgrade it",
}


def _trouble_lines(agent: Mapping[str, object]) -> list[str]:
    """What keeps a running agent from its work, and what to do about it."""
    if not agent.get("is_running"):
        return []
    lines = []
    if code := agent.get("cannot_record"):
        cause = _CANNOT_RECORD.get(
            str(code), "the site's database cannot be written. See the agent's log for the cause"
        )
        lines.append(f"STOPPED   nothing can be recorded, so nothing is done ({code}): {cause}")
    if reason := agent.get("refused_because"):
        lines.append(f"Refused   the last round ({reason})" + (f": {s}" if (s := _REFUSALS.get(str(reason))) else ""))
    if isinstance(failure := agent.get("training_failure"), Mapping):
        lines.append(f"FAILED    {_failure_line(failure)}")
    return lines


def _failure_line(failure: Mapping[str, object]) -> str:
    """Why the last job failed, where, and what can be done about it."""
    facts = failure.get("facts")
    where = f"run {failure.get('run_id')}, round {failure.get('round_index')}"
    parts = [f"training in {where} ({failure.get('code')}): {failure.get('message')}"]
    if isinstance(facts, Mapping) and facts:
        parts.append("[" + ", ".join(f"{key}={value}" for key, value in facts.items()) + "]")
    if failure.get("advice"):
        parts.append(str(failure["advice"]))
    return " ".join(parts)


def _agent_line(agent: Mapping[str, object]) -> str:
    if not agent.get("is_running"):
        return "not running; 'wardround-site start' starts it"
    connection = "connected" if agent.get("connected") else "NOT connected"
    if agent.get("transport") not in {None, "grpc"}:
        connection += f" over {agent['transport']} (gRPC does not get through; 'wardround-site doctor' says why)"
    work = str(agent.get("state") or "idle")
    if agent.get("run_id"):
        work += f", run {agent['run_id']}, round {agent.get('round_index')}"
    if agent.get("steps"):
        work += f", step {agent.get('step')} of {agent['steps']}"
    return f"{connection}; {work}"
