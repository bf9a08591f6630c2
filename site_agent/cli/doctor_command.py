"""``wardround-site doctor``: is this machine fit to take part, and what to do where it is not."""

from __future__ import annotations

import typer

from site_agent.cli.check_results import Health
from site_agent.cli.console import FAILED, console_of, table
from site_agent.cli.doctor_checks import run_checks


def doctor(context: typer.Context) -> None:
    """Check keys, certificate, clock, policy, datasets, disk and the way to the coordinator.

    Example: wardround-site doctor
    """
    console = console_of(context)
    results = tuple(run_checks(console.folder, now=console.clock.now()))
    is_fit = all(result.health is not Health.FAILED for result in results)
    document = {
        "is_fit": is_fit,
        "checks": [
            {"name": result.name, "health": result.health.value, "message": result.message, "advice": result.advice}
            for result in results
        ],
    }
    rows = [(result.health.upper(), result.name, result.message, result.advice) for result in results]
    end = "Fit to take part." if is_fit else "Not fit yet: mend what failed, from the top."
    console.answer(document, table(("", "check", "", "what to do"), rows), "", end)
    if not is_fit:
        raise typer.Exit(FAILED)
