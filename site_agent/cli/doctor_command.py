"""``wardround-site doctor``: is this machine fit to take part, and what to do where it is not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fl_protocol.telemetry.findings import Health, page, verdict
from site_agent.cli.console import FAILED, SiteConsole, UsageError, console_of
from site_agent.doctor.firewall import firewall_request
from site_agent.doctor.live import ask_live
from site_agent.doctor.opening import open_scene
from site_agent.doctor.scene import Asked, Scene
from site_agent.doctor.table import run_checks
from site_agent.enrolment.code import code_from_text
from site_agent.link.proxy import check_proxy_setting


def doctor(
    context: typer.Context,
    *,
    coordinator: Annotated[
        str | None, typer.Option("--coordinator", metavar="HOST:PORT", help="The gateway, before enrolment.")
    ] = None,
    enrolment: Annotated[
        str | None,
        typer.Option("--enrolment", metavar="HOST:PORT", help="The enrolment listener, as in the invitation."),
    ] = None,
    code: Annotated[
        str | None,
        typer.Option("--code", metavar="CODE", help="From the invitation; it is compared with, not sent or spent."),
    ] = None,
    proxy: Annotated[
        str | None, typer.Option("--proxy", metavar="URL", help="http://HOST:PORT, or 'none'; else as set.")
    ] = None,
    proxy_credentials_file: Annotated[
        Path | None, typer.Option("--proxy-credentials-file", metavar="FILE", help="user:password, mode 0600.")
    ] = None,
    is_firewall: Annotated[
        bool, typer.Option("--firewall", help="Print the request to hand to the network team, and check nothing.")
    ] = False,
    is_live: Annotated[
        bool, typer.Option("--live", help="Only look whether the agent of this folder is well; for healthchecks.")
    ] = False,
) -> None:
    """Check what this site needs, also before it has enrolled: network, clock, GPU, memory, data, keys, policy.

    Example: wardround-site doctor --enrolment fl.example.org:8445 --code WR1-...-...
    """
    console = console_of(context)
    if is_live:
        _answer_live(console)
        return
    if proxy is not None:
        check_proxy_setting(proxy)
    asked = Asked(
        coordinator=coordinator,
        enrolment=enrolment,
        code=None if code is None else code_from_text(code),
        proxy=proxy,
        proxy_credentials_file=proxy_credentials_file,
    )
    scene = open_scene(console.folder, clock=console.clock.now, environment=os.environ, asked=asked)
    if is_firewall:
        _answer_firewall(console, scene)
        return
    _answer_checks(console, scene)


def _answer_live(console: SiteConsole) -> None:
    # Asked as a program of its own, this is answered in ``__main__``, before anything else is loaded.
    answer = ask_live(console.folder, now=console.clock.now())
    console.answer(answer.document(), answer.sentence)
    if not answer.is_well:
        raise typer.Exit(FAILED)


def _answer_firewall(console: SiteConsole, scene: Scene) -> None:
    request = firewall_request(scene)
    if not request.openings:
        message = "nobody has enrolled here, and no address is named; add --enrolment HOST:PORT from the invitation"
        raise UsageError(message)
    console.answer(request.document(), "\n".join(request.lines()))


def _answer_checks(console: SiteConsole, scene: Scene) -> None:
    console.say("Looking; a way that is closed takes ten seconds to tell.")
    results = tuple(run_checks(scene))
    well = "Fit to take part." if scene.is_enrolled else "Fit to enrol."
    is_fit = all(result.health is not Health.FAILED for result in results)
    document = {"ok": is_fit, "checks": [result.document() for result in results]}
    console.answer(document, "\n".join(page(results)), "", verdict(results, well=well))
    if not is_fit:
        raise typer.Exit(FAILED)
