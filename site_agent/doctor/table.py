"""The one list of checks, in the order in which one would mend things."""

from __future__ import annotations

from collections.abc import Iterator

from fl_protocol.errors import WardroundError
from fl_protocol.telemetry.findings import Check, CheckResult, failed_by
from site_agent.doctor import answer_checks, data_checks, machine_checks, network_checks, own_checks
from site_agent.doctor.scene import Scene

CHECKS: tuple[Check[Scene], ...] = (
    *own_checks.CHECKS,
    *data_checks.CHECKS,
    *machine_checks.CHECKS,
    *network_checks.CHECKS,
    *answer_checks.CHECKS,
)


def run_checks(scene: Scene) -> Iterator[CheckResult]:
    """Every check; one that an error ends does not stop the others, and one error is told once."""
    told: set[tuple[str, str]] = set()
    for check in CHECKS:
        try:
            yield from check.run(scene)
        except WardroundError as error:
            if (key := (error.code, str(error))) not in told:
                told.add(key)
                yield failed_by(check.name, error)
