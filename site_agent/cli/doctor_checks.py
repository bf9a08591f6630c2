"""What ``doctor`` looks at: each check is one fact about this machine and what to do when it is wrong."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from fl_protocol.audit.verify import AuditFault
from fl_protocol.errors import WardroundError
from fl_protocol.pki.tls import certificate_from_pem, remaining_validity
from site_agent.audit.store import origin_of_site, verify_site_log
from site_agent.cli.check_results import CheckResult, Health
from site_agent.cli.network_checks import network_checks
from site_agent.datasets.registry import list_datasets
from site_agent.db.tx import open_site_db
from site_agent.enrolment.identity_file import load_identity
from site_agent.enrolment.keystore import KeyStore
from site_agent.enrolment.renewal import renewal_instant
from site_agent.folder import SiteFolder
from site_agent.jobs.spool import ABSENT_ADVICE
from site_agent.jobs.spool_files import is_trainer_alive
from site_agent.policy_file import load_policy
from site_agent.settings import SiteSettings, load_settings

_OVERDUE = 0.3
_LITTLE_DISK_BYTES = 5 * 10**9
_NO_DISK_BYTES = 5 * 10**8


def run_checks(folder: SiteFolder, *, now: datetime) -> Iterator[CheckResult]:
    """All checks, in the order in which one would mend things; a failed one does not stop the others."""
    yield _checked("settings", lambda: _settings(folder))
    yield _checked("identity", lambda: _identity(folder))
    yield _checked("keys", lambda: _keys(folder))
    yield _checked("certificate", lambda: _certificate(folder, now))
    yield _checked("policy", lambda: _policy(folder))
    yield _checked("database", lambda: _database(folder))
    yield _checked("datasets", lambda: _datasets(folder))
    yield _checked("base models", lambda: _base_models(folder))
    yield _checked("trainer", lambda: _trainer(folder))
    yield _checked("disk", lambda: _disk(folder))
    yield from _network(folder)


def _network(folder: SiteFolder) -> Iterator[CheckResult]:
    try:
        yield from network_checks(folder)
    except WardroundError as error:
        yield _failure("coordinator", error)


def _checked(name: str, check: Callable[[], tuple[Health, str, str]]) -> CheckResult:
    try:
        health, message, advice = check()
    except WardroundError as error:
        return _failure(name, error)
    return CheckResult(name=name, health=health, message=message, advice=advice)


def _failure(name: str, error: WardroundError) -> CheckResult:
    advice = str(getattr(error, "advice", "") or "")
    return CheckResult(name=name, health=Health.FAILED, message=str(error), advice=advice)


def _ok(message: str) -> tuple[Health, str, str]:
    return Health.OK, message, ""


def _settings(folder: SiteFolder) -> tuple[Health, str, str]:
    load_settings(folder.root)
    return _ok("site.yaml is well formed")


def _identity(folder: SiteFolder) -> tuple[Health, str, str]:
    return _ok(f"enrolled as {load_identity(folder).site_id}")


def _keys(folder: SiteFolder) -> tuple[Health, str, str]:
    identity = load_identity(folder)
    keys = KeyStore(folder)
    certificate = certificate_from_pem(identity.certificate_pem)
    if keys.signing_key_sha256() != identity.signing_key_sha256:
        advice = "Restore the keys folder from this site's own backup."
        return Health.FAILED, "the signing key is not the one that enrolled", advice
    if keys.load_tls_key().public_key() != certificate.public_key():
        advice = "Restore the keys and certs folders from the same backup."
        return Health.FAILED, "the TLS key does not belong to the certificate", advice
    return _ok("both keys are there, and only this user can read them")


def _certificate(folder: SiteFolder, now: datetime) -> tuple[Health, str, str]:
    identity = load_identity(folder)
    if now + timedelta(minutes=5) < identity.enrolled_at:
        return Health.FAILED, "this machine's clock is behind the day of enrolment", "Set the clock (NTP)."
    certificate = certificate_from_pem(identity.certificate_pem)
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if now > certificate.not_valid_after_utc:
        advice = "Start the agent, or run 'wardround-site identity renew': it recovers by this site's signing key."
        return Health.WARNING, f"ended {until}", advice
    left = remaining_validity(certificate, now)
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    # The first try is due by six tenths of its life at the latest.
    if left < life * _OVERDUE:
        advice = "The agent should have renewed it: is it running? 'wardround-site status' says so, its log why not."
        return Health.WARNING, f"valid until {until}, and not renewed yet", advice
    return _ok(f"valid until {until}; the agent renews it around {renewal_instant(certificate, 0.5):%Y-%m-%d %H:%M}")


def _policy(folder: SiteFolder) -> tuple[Health, str, str]:
    policy = load_policy(load_settings(folder.root).policy_path)
    if not policy.datasets or not policy.tasks:
        return Health.WARNING, "the policy permits no run yet", "Edit policy.yaml."
    return _ok(f"approval: {policy.approval}; {len(policy.datasets)} dataset(s) named")


def _database(folder: SiteFolder) -> tuple[Health, str, str]:
    identity = load_identity(folder)
    db = open_site_db(folder.database)
    try:
        spki = KeyStore(folder).load_signer().spki_der
        verdict = verify_site_log(db, spki, origin=origin_of_site(identity.site_id))
    finally:
        db.close()
    if isinstance(verdict, AuditFault):
        return Health.FAILED, "the audit log was altered", "Run 'wardround-site audit verify'."
    return _ok(f"the audit log is whole, {verdict.size} rows")


def _datasets(folder: SiteFolder) -> tuple[Health, str, str]:
    db = open_site_db(folder.database)
    try:
        datasets = db.run_read("list_datasets", list_datasets)
    finally:
        db.close()
    if not datasets:
        return Health.WARNING, "no dataset is registered", "Run 'wardround-site datasets register FILE.yaml'."
    if load_settings(folder.root).runner.is_trainer_elsewhere:
        return _ok(f"{len(datasets)} registered; only the trainer sees them: 'datasets check NAME' asks it")
    missing = [dataset.name for dataset in datasets if not dataset.path.exists()]
    if missing:
        return Health.FAILED, f"files are missing: {', '.join(missing)}", "Put them back, or withdraw the datasets."
    return _ok(f"{len(datasets)} registered; 'datasets check NAME' compares their digests")


def _base_models(folder: SiteFolder) -> tuple[Health, str, str]:
    settings = load_settings(folder.root)
    if not settings.base_models:
        return Health.WARNING, "no base model is configured", "Name one under base_models in site.yaml."
    if settings.runner.is_trainer_elsewhere:
        return _ok(f"{len(settings.base_models)} configured; only the trainer sees them, and checks their digests")
    missing = [name for name in settings.base_models if not _has_model(settings, name)]
    if missing:
        return Health.FAILED, f"folders are missing: {', '.join(missing)}", "Correct base_models in site.yaml."
    return _ok(f"{len(settings.base_models)} configured")


def _has_model(settings: SiteSettings, name: str) -> bool:
    path = settings.base_model_path(name)
    return path is not None and path.is_dir()


def _trainer(folder: SiteFolder) -> tuple[Health, str, str]:
    settings = load_settings(folder.root)
    if settings.runner.kind == "spool":
        if is_trainer_alive(settings.jobs_dir):
            return _ok("a trainer serves the jobs folder")
        return Health.FAILED, "no trainer serves the jobs folder", ABSENT_ADVICE
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        return Health.FAILED, f"not installed: {', '.join(missing)}", "Install wardround[training]."
    return _ok("the training part is installed")


def _disk(folder: SiteFolder) -> tuple[Health, str, str]:
    free = shutil.disk_usage(folder.root).free
    message = f"{free / 10**9:.1f} GB free"
    if free < _NO_DISK_BYTES:
        return Health.FAILED, message, "Make room: training writes adapters and masked uploads to this folder."
    if free < _LITTLE_DISK_BYTES:
        return Health.WARNING, message, "A large adapter may need more."
    return _ok(message)
