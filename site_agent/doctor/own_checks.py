"""The checks of what is the site's own: settings, identity, keys, certificate, policy, database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from cryptography import x509

from fl_protocol.audit.verify import AuditFault
from fl_protocol.pki.tls import certificate_from_pem, remaining_validity
from fl_protocol.telemetry.findings import Check, CheckResult, Health, Outcome, found
from site_agent.audit.store import origin_of_site, verify_site_log
from site_agent.db.tx import open_site_db
from site_agent.doctor.scene import Scene
from site_agent.enrolment.keystore import KeyStore
from site_agent.enrolment.renewal import renewal_instant
from site_agent.policy_file import load_policy

FAMILY = "this site"
_OVERDUE = 0.3
_CLOCK_ROOM = timedelta(minutes=5)

SETTINGS_GOOD = Outcome(code="settings-good", health=Health.OK, means="site.yaml is well formed.")
SETTINGS_NONE = Outcome(
    code="settings-none",
    health=Health.NOTE,
    means="There is no site.yaml yet; defaults and the command line are looked at.",
)
SETTINGS_NOWHERE = Outcome(
    code="settings-nowhere",
    health=Health.FAILED,
    means="There is no site.yaml, and no address was named: nobody knows where the coordinator is.",
    advice=(
        "Before enrolment name the addresses of the invitation: wardround-site doctor --enrolment HOST:8445 "
        "[--coordinator HOST:8444] [--code CODE]. After it, name the folder with --state-dir."
    ),
)


def _settings(scene: Scene) -> Iterator[CheckResult]:
    settings = scene.settings()
    if scene.has_settings:
        yield found("settings", SETTINGS_GOOD, "site.yaml is well formed")
    elif scene.asked.names_an_address or settings.coordinator.address:
        yield found("settings", SETTINGS_NONE, f"{scene.folder.root} holds no site.yaml yet; enrolment makes it")
    else:
        yield found("settings", SETTINGS_NOWHERE, f"{scene.folder.root} holds no site.yaml, and no address is named")


ENROLLED = Outcome(code="enrolled", health=Health.OK, means="The folder has a site's identity.")
NOT_ENROLLED = Outcome(
    code="not-enrolled", health=Health.NOTE, means="Nobody has enrolled here; keys and certificate are not looked at."
)


def _identity(scene: Scene) -> Iterator[CheckResult]:
    if not scene.is_enrolled:
        yield found("identity", NOT_ENROLLED, "not enrolled yet: keys, certificate and database come with enrolment")
        return
    site_id = scene.identity().site_id
    yield found("identity", ENROLLED, f"enrolled as {site_id}", site_id=site_id)


KEYS_GOOD = Outcome(code="keys-good", health=Health.OK, means="Both keys are there, and only this user can read them.")
SIGNING_KEY_OTHER = Outcome(
    code="signing-key-other",
    health=Health.FAILED,
    means="The signing key is not the one that enrolled.",
    advice="Restore the keys folder from this site's own backup.",
)
TLS_KEY_OTHER = Outcome(
    code="tls-key-other",
    health=Health.FAILED,
    means="The TLS key does not belong to the certificate.",
    advice="Restore the keys and certs folders from the same backup.",
)


def _keys(scene: Scene) -> Iterator[CheckResult]:
    if not scene.is_enrolled:
        return
    identity = scene.identity()
    keys = KeyStore(scene.folder)
    certificate = certificate_from_pem(identity.certificate_pem)
    if keys.signing_key_sha256() != identity.signing_key_sha256:
        yield found("keys", SIGNING_KEY_OTHER, "the signing key is not the one that enrolled")
    elif keys.load_tls_key().public_key() != certificate.public_key():
        yield found("keys", TLS_KEY_OTHER, "the TLS key does not belong to the certificate")
    else:
        yield found("keys", KEYS_GOOD, "both keys are there, and only this user can read them")


CERTIFICATE_GOOD = Outcome(code="certificate-good", health=Health.OK, means="It is valid, and renewed in time.")
CERTIFICATE_EARLY = Outcome(
    code="certificate-early",
    health=Health.FAILED,
    means="It is not valid yet: by every sign this machine's clock is behind.",
    advice="Set this machine's clock (NTP: chrony or systemd-timesyncd), then ask again.",
)
CERTIFICATE_ENDED = Outcome(
    code="certificate-ended",
    health=Health.WARNING,
    means="Its life is over, or this machine's clock is ahead.",
    advice=(
        "Start the agent, or run 'wardround-site identity renew': it recovers by this site's signing key. If the date "
        "of this machine is wrong, set its clock first."
    ),
)
CERTIFICATE_UNRENEWED = Outcome(
    code="certificate-unrenewed",
    health=Health.WARNING,
    means="More than seven tenths of its life are over, and it was not renewed.",
    advice="The agent should have renewed it: is it running? 'wardround-site status' says so, its log why not.",
)


def _certificate(scene: Scene) -> Iterator[CheckResult]:
    if scene.is_enrolled:
        identity = scene.identity()
        certificate = certificate_from_pem(identity.certificate_pem)
        yield judge_certificate(certificate, enrolled_at=identity.enrolled_at, now=scene.clock())


def judge_certificate(certificate: x509.Certificate, *, enrolled_at: datetime, now: datetime) -> CheckResult:
    """Whether the site's certificate is in its time."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    until = f"{ends:%Y-%m-%d %H:%M} UTC"
    # It was backdated by some minutes, so that clocks may differ by as much.
    first = max(begins, enrolled_at - _CLOCK_ROOM)
    if now < first:
        behind = int((first - now).total_seconds())
        message = (
            f"it begins {begins:%Y-%m-%d %H:%M} UTC, and this machine says {now:%Y-%m-%d %H:%M}: {behind} s behind"
        )
        return found("certificate", CERTIFICATE_EARLY, message, seconds_behind_at_least=behind)
    if now > ends:
        return found("certificate", CERTIFICATE_ENDED, f"ended {until}")
    left = remaining_validity(certificate, now)
    # The first try is due by six tenths of its life at the latest.
    if left < (ends - begins) * _OVERDUE:
        return found("certificate", CERTIFICATE_UNRENEWED, f"valid until {until}, and not renewed yet")
    planned = renewal_instant(certificate, 0.5)
    message = f"valid until {until}; the agent renews it around {planned:%Y-%m-%d %H:%M}"
    return found("certificate", CERTIFICATE_GOOD, message)


POLICY_GOOD = Outcome(code="policy-good", health=Health.OK, means="The policy can be read and permits something.")
POLICY_PERMITS_NOTHING = Outcome(
    code="policy-permits-nothing",
    health=Health.WARNING,
    means="The policy names no dataset or no task, so that no run is permitted.",
    advice="Edit policy.yaml: say which datasets, purposes and tasks this hospital permits.",
)


def _policy(scene: Scene) -> Iterator[CheckResult]:
    settings = scene.settings()
    if not scene.is_enrolled and not settings.policy_path.exists():
        return
    policy = load_policy(settings.policy_path)
    if not policy.datasets or not policy.tasks:
        yield found("policy", POLICY_PERMITS_NOTHING, "the policy permits no run yet")
        return
    yield found("policy", POLICY_GOOD, f"approval: {policy.approval}; {len(policy.datasets)} dataset(s) named")


DATABASE_GOOD = Outcome(code="database-good", health=Health.OK, means="It opens, and the audit log in it is whole.")
DATABASE_MISSING = Outcome(
    code="database-missing",
    health=Health.FAILED,
    means="The site is enrolled, and its database is not there.",
    advice="Restore site.db from this site's own backup: it holds the register, the approvals and the audit log.",
)
AUDIT_LOG_ALTERED = Outcome(
    code="audit-log-altered",
    health=Health.FAILED,
    means="A row of the audit log is not what was written.",
    advice="Run 'wardround-site audit verify': it names the row. Keep the file; it is evidence.",
)


def _database(scene: Scene) -> Iterator[CheckResult]:
    if not scene.is_enrolled:
        return
    if not scene.folder.database.exists():
        yield found("database", DATABASE_MISSING, f"{scene.folder.database} is not there")
        return
    identity = scene.identity()
    db = open_site_db(scene.folder.database)
    try:
        spki = KeyStore(scene.folder).load_signer().spki_der
        verdict = verify_site_log(db, spki, origin=origin_of_site(identity.site_id))
    finally:
        db.close()
    if isinstance(verdict, AuditFault):
        yield found("database", AUDIT_LOG_ALTERED, "the audit log was altered")
    else:
        yield found("database", DATABASE_GOOD, f"the audit log is whole, {verdict.size} rows", rows=verdict.size)


CHECKS = (
    Check(
        name="settings",
        family=FAMILY,
        looks_at="site.yaml and what the environment says above it",
        outcomes=(SETTINGS_GOOD, SETTINGS_NONE, SETTINGS_NOWHERE),
        run=_settings,
    ),
    Check(
        name="identity",
        family=FAMILY,
        looks_at="whether this folder has enrolled",
        outcomes=(ENROLLED, NOT_ENROLLED),
        run=_identity,
    ),
    Check(
        name="keys",
        family=FAMILY,
        looks_at="the two keys, their rights, and that they belong to identity and certificate",
        outcomes=(KEYS_GOOD, SIGNING_KEY_OTHER, TLS_KEY_OTHER),
        run=_keys,
    ),
    Check(
        name="certificate",
        family=FAMILY,
        looks_at="the dates of the site's certificate",
        outcomes=(CERTIFICATE_GOOD, CERTIFICATE_EARLY, CERTIFICATE_ENDED, CERTIFICATE_UNRENEWED),
        run=_certificate,
    ),
    Check(
        name="policy",
        family=FAMILY,
        looks_at="policy.yaml",
        outcomes=(POLICY_GOOD, POLICY_PERMITS_NOTHING),
        run=_policy,
    ),
    Check(
        name="database",
        family=FAMILY,
        looks_at="site.db, and the chain of its audit log",
        outcomes=(DATABASE_GOOD, DATABASE_MISSING, AUDIT_LOG_ALTERED),
        run=_database,
    ),
)
