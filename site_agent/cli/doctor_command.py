"""``wardround-site doctor``: is this machine fit to take part, and what to do where it is not."""

from __future__ import annotations

from typing import Annotated

import typer

from site_agent.cli.check_results import Health
from site_agent.cli.console import FAILED, console_of, table
from site_agent.cli.doctor_checks import run_checks
from site_agent.doctor.live import ask_live


def doctor(
    context: typer.Context,
    *,
    is_live: Annotated[
        bool, typer.Option("--live", help="Only look whether the agent of this folder is well; for healthchecks.")
    ] = False,
) -> None:
    """Check keys, certificate, clock, policy, datasets, disk and the way to the coordinator.

    Example: wardround-site doctor
    """
    console = console_of(context)
    if is_live:
        # Asked as a program of its own, this is answered in ``__main__``, before anything else is loaded.
        answer = ask_live(console.folder, now=console.clock.now())
        console.answer(answer.document(), answer.sentence)
        if not answer.is_well:
            raise typer.Exit(FAILED)
        return
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
