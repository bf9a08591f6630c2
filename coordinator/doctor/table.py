"""The one list of the coordinator's checks, in the order in which one would mend things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from coordinator.doctor import network_checks, own_checks, store_checks
from coordinator.doctor.scene import Scene
from coordinator.installation import open_installation
from coordinator.settings import SettingsInvalidError
from fl_protocol.clock import Clock
from fl_protocol.errors import WardroundError
from fl_protocol.telemetry.findings import Check, CheckResult, Health, failed_by

CHECKS: tuple[Check[Scene], ...] = (*own_checks.CHECKS, *store_checks.CHECKS, *network_checks.CHECKS)


def diagnose(config: Path, *, clock: Clock, serve_file: Path | None = None) -> tuple[CheckResult, ...]:
    """Every check of the coordinator whose file this is."""
    try:
        installation = open_installation(config)
    except SettingsInvalidError as error:
        return (
            CheckResult(
                name="configuration",
                code=error.code,
                health=Health.FAILED,
                message="; ".join(error.faults),
                advice=f"Edit {config}, or make one with `wardround-coordinator init`.",
            ),
        )
    return tuple(run_checks(Scene(installation=installation, config=config, clock=clock, serve_file=serve_file)))


def run_checks(scene: Scene) -> Iterator[CheckResult]:
    """Every check; one that an error ends does not stop the others."""
    for check in CHECKS:
        try:
            yield from check.run(scene)
        except WardroundError as error:
            yield failed_by(check.name, error)
