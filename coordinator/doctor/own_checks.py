"""The checks of what is the coordinator's own: configuration, keys, rights of files, the names in its certificates."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from coordinator.doctor.scene import Scene
from coordinator.installation import ADMIN_TOKEN
from coordinator.settings import unknown_environment_sections
from fl_protocol.errors import WardroundError
from fl_protocol.pki.tls import certificate_from_pem
from fl_protocol.telemetry.findings import Check, CheckResult, Health, Outcome, found

FAMILY = "this coordinator"
_SOON = timedelta(days=180)
_NOW = timedelta(days=30)
_LOCAL = frozenset({"127.0.0.1", "::1", "localhost"})

CONFIGURATION_GOOD = Outcome(code="configuration-good", health=Health.OK, means="The file has no fault.")
CONFIGURATION_FOREIGN = Outcome(
    code="configuration-foreign",
    health=Health.NOTE,
    means="The environment has variables of sections that are not the coordinator's; a site agent's may be.",
)


def _configuration(scene: Scene) -> Iterator[CheckResult]:
    unknown = unknown_environment_sections()
    if unknown:
        yield found("configuration", CONFIGURATION_FOREIGN, f"no fault; not the coordinator's: {', '.join(unknown)}")
    else:
        yield found("configuration", CONFIGURATION_GOOD, f"{scene.config} has no fault")


KEYS_GOOD = Outcome(code="keys-good", health=Health.OK, means="All keys are there, and no certificate ends soon.")
KEYS_UNREADABLE = Outcome(
    code="keys-unreadable",
    health=Health.FAILED,
    means="A key or a certificate is missing, open to others, or holds something else.",
    advice="Restore the folder of keys from a backup, or mend what the sentence names.",
)
CERTIFICATE_ENDING = Outcome(
    code="ca-certificate-ending",
    health=Health.WARNING,
    means="The root's or the issuing certificate ends within 180 days.",
    advice="Rotate it: `wardround-coordinator ca rotate`, or `ca csr` where the root is offline.",
)
CERTIFICATE_ENDS_NOW = Outcome(
    code="ca-certificate-ends-now",
    health=Health.FAILED,
    means="The root's or the issuing certificate ends within 30 days, or has ended.",
    advice="Rotate it now: `wardround-coordinator ca rotate`; sites need some days to take the next one over.",
)
ENROLMENT_ENDING = Outcome(
    code="enrolment-certificate-ending",
    health=Health.WARNING,
    means="The certificate that invitations name ends within 180 days.",
    advice="Plan a day for a new one: invitations that are open then have to be made again.",
)


def _keys(scene: Scene) -> Iterator[CheckResult]:
    try:
        keys = scene.installation.load_keys()
    except WardroundError as error:
        yield found("keys", KEYS_UNREADABLE, str(error))
        return
    issuing, now = keys.authority.slots.issuing, scene.clock.now()
    left = min(issuing.root.not_valid_after_utc, issuing.certificate.not_valid_after_utc) - now
    what = "root" if issuing.certificate == issuing.root else "issuing"
    message = f"the {what} certificate has {left.days} days left"
    if left < _SOON:
        outcome = CERTIFICATE_ENDS_NOW if left < _NOW else CERTIFICATE_ENDING
        yield found("keys", outcome, message, days_left=left.days)
    else:
        yield found("keys", KEYS_GOOD, f"four keys; {message}", days_left=left.days)
    enrolment = certificate_from_pem(keys.enrolment.certificate_pem).not_valid_after_utc - now
    if enrolment < _SOON:
        message = f"the enrolment listener's certificate has {enrolment.days} days left"
        yield found("keys", ENROLMENT_ENDING, message, days_left=enrolment.days)


RIGHTS_GOOD = Outcome(code="rights-good", health=Health.OK, means="The keys are their owner's only.")
KEYS_EXPOSED = Outcome(
    code="keys-exposed",
    health=Health.FAILED,
    means="Others may read or write a private key, or write into the folder of keys.",
    advice="chmod 600 on the *.key.pem and chmod 700 on their folder, owned by the user that runs the coordinator.",
)
TOKEN_LEFT = Outcome(
    code="admin-token-left",
    health=Health.WARNING,
    means="The first admin's token still lies in the folder.",
    advice="Hand admin.token over and delete it; `wardround-coordinator token` makes another one where it is lost.",
)


def _permissions(scene: Scene) -> Iterator[CheckResult]:
    folder = scene.installation.keys_directory
    others = stat.S_IRWXG | stat.S_IRWXO
    loose = [path.name for path in sorted(folder.glob("*.key.pem")) if _mode(path) & others]
    if folder.is_dir() and _mode(folder) & (stat.S_IWGRP | stat.S_IWOTH):
        loose.append(f"the folder {folder}")
    if loose:
        advice = f"chmod 600 {folder}/*.key.pem; chmod 700 {folder}"
        yield found("permissions", KEYS_EXPOSED, f"others may use {', '.join(loose)}", advice=advice)
    else:
        yield found("permissions", RIGHTS_GOOD, "the keys are their owner's only")


def _first_token(scene: Scene) -> Iterator[CheckResult]:
    if (scene.installation.directory / ADMIN_TOKEN).exists():
        yield found("first token", TOKEN_LEFT, f"{ADMIN_TOKEN} lies in {scene.installation.directory}")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


NAMES_GOOD = Outcome(code="names-good", health=Health.OK, means="The REST certificate has names for whoever connects.")
NAMES_LOCAL = Outcome(
    code="names-local",
    health=Health.WARNING,
    means="REST listens for other machines, and its certificate names this one only.",
    advice="Put the name that people type into rest.names, and start the coordinator again.",
)


def _names(scene: Scene) -> Iterator[CheckResult]:
    rest = scene.installation.settings.rest
    if rest.host not in _LOCAL and set(rest.names) <= _LOCAL:
        yield found("names", NAMES_LOCAL, f"rest listens on {rest.host}, and is called {', '.join(rest.names)}")
    else:
        yield found(
            "names", NAMES_GOOD, f"rest is called {', '.join(rest.names)}; sites know the gateway by a fixed name"
        )


CHECKS: tuple[Check[Scene], ...] = (
    Check(
        name="configuration",
        family=FAMILY,
        looks_at="coordinator.yaml and what the environment says above it",
        outcomes=(CONFIGURATION_GOOD, CONFIGURATION_FOREIGN),
        run=_configuration,
    ),
    Check(
        name="keys",
        family=FAMILY,
        looks_at="the private keys, and the dates of the CA's and the enrolment listener's certificates",
        outcomes=(KEYS_GOOD, KEYS_UNREADABLE, CERTIFICATE_ENDING, CERTIFICATE_ENDS_NOW, ENROLMENT_ENDING),
        run=_keys,
    ),
    Check(
        name="permissions",
        family=FAMILY,
        looks_at="who else may use the key files",
        outcomes=(RIGHTS_GOOD, KEYS_EXPOSED),
        run=_permissions,
    ),
    Check(
        name="first token",
        family=FAMILY,
        looks_at="whether the first admin's token still lies in the folder",
        outcomes=(TOKEN_LEFT,),
        run=_first_token,
    ),
    Check(
        name="names",
        family=FAMILY,
        looks_at="the names in the REST listener's certificate",
        outcomes=(NAMES_GOOD, NAMES_LOCAL),
        run=_names,
    ),
)
