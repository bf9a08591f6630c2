"""``python -m wardround.demo.containers prepare | enrol | run``: what the demonstration's own containers start."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from wardround.cli.program import read_line, run_line
from wardround.cli.shell import Shell, shell_of
from wardround.demo.containers.enrol import ContainerSites, enrol
from wardround.demo.containers.places import Places
from wardround.demo.containers.prepare import prepare
from wardround.demo.containers.run import run
from wardround.demo.coordinator_host import CoordinatorHost, sign_in
from wardround.demo.live_table import PlainProgress, Progress, TerminalProgress
from wardround.demo.processes import Supervisor
from wardround.demo.study import RunChoices
from wardround.demo.summary import print_report
from wardround.demo.workspace import DEFAULT_STUDY, Checkout, Programs, child_environment
from wardround.documents import document_from_text, integer_of, text_of
from wardround.studies.catalogue import find_study

_STOPPED = "Stopped. What was done is kept; 'docker compose --profile demo up' goes on."
_NEXT = (
    "The release is in the volume of this demonstration. To look at it, and to end:",
    "  docker compose --profile demo cp demo:/srv/demo/release ./release",
    "  docker compose --profile demo run --rm demo run --again      # another run among the same sites",
    "  docker compose --profile demo down --volumes                 # remove everything, keys and models too",
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The demonstration in containers, stage by stage; docker-compose.yml calls them in their order.",
)

Url = Annotated[str, typer.Option("--coordinator", help="Where the coordinator's REST listener is.")]
_URL = "https://coordinator:8443"


@app.command(name="prepare")
def prepare_command(
    context: typer.Context,
    study: Annotated[str, typer.Option("--study", help="A study of the image, or a path in the container.")],
    sites: Annotated[str, typer.Option("--sites", help="The hospitals, separated by commas.")],
    rounds: Annotated[str, typer.Option("--rounds", help="How many; nothing: as the study says.")] = "",
) -> None:
    """Make base model, datasets, specification and initial adapter, without a network."""
    shell, places = shell_of(context), Places()
    progress = _progress_for(shell)
    if places.is_prepared:
        progress.say("Everything is prepared already.")
        return
    with _supervisor(places, shell) as supervisor:
        prepare(
            places,
            study_name=study or DEFAULT_STUDY,
            choices=RunChoices(sites=tuple(sites.split(",")), rounds=_rounds(rounds)),
            checkout=Checkout.of_this_package(),
            supervisor=supervisor,
            programs=Programs(),
            progress=progress,
        )


@app.command(name="enrol")
def enrol_command(context: typer.Context, coordinator: Url = _URL) -> None:
    """Invite and enrol the sites, and make each ready for the run."""
    shell, places = shell_of(context), Places()
    run_spec = places.read_run_spec()
    with _supervisor(places, shell) as supervisor, _people(places, coordinator) as people:
        enrol(_sites_of(places, run_spec, supervisor), people, run_spec, progress=_progress_for(shell))


@app.command(name="run")
def run_command(
    context: typer.Context,
    coordinator: Url = _URL,
    *,
    is_again: Annotated[bool, typer.Option("--again", help="Make another run among the same sites.")] = False,
) -> None:
    """Create and start the run, watch it, sign and verify its release and every audit log."""
    shell, places = shell_of(context), Places()
    run_spec, progress = places.read_run_spec(), _progress_for(shell)
    if places.workspace.summary_file.is_file() and not is_again:
        told = document_from_text(places.workspace.summary_file.read_text(encoding="utf-8"), source="summary.json")
        shell.say(f"Run {text_of(told, 'run_id')} came to its end before, and its release was verified.")
        _say_next(shell)
        return
    with _supervisor(places, shell) as supervisor, _people(places, coordinator) as people:
        sites = _sites_of(places, run_spec, supervisor)
        report = run(sites, people, run_spec, progress=progress, is_again=is_again)
    if shell.as_json:
        shell.show_document(report.to_document())
        return
    print_report(report, shell.out, has_live_table=shell.out.is_terminal)
    _say_next(shell)


def main(arguments: list[str] | None = None) -> int:
    """Run one stage; returns the exit code."""
    words, shell = read_line(arguments)
    signal.signal(signal.SIGTERM, _stop_as_by_ctrl_c)
    return run_line(app, words, shell, name="python -m wardround.demo.containers", if_interrupted=_STOPPED)


def _sites_of(places: Places, run_spec: dict[str, object], supervisor: Supervisor) -> ContainerSites:
    prepared = document_from_text(places.prepared_file.read_text(encoding="utf-8"), source=places.prepared_file.name)
    study = find_study(text_of(prepared, "study"), Checkout.of_this_package().examples_dir)
    cohort = run_spec.get("cohort")
    names = cohort.get("sites", []) if isinstance(cohort, dict) else []
    return ContainerSites(
        places=places,
        study=study,
        names=tuple(str(name) for name in names),
        supervisor=supervisor,
        programs=Programs(),
    )


@contextlib.contextmanager
def _supervisor(places: Places, shell: Shell) -> Iterator[Supervisor]:
    logs = places.workspace.logs
    logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    environment = child_environment(shell.environment, Checkout.of_this_package())
    with Supervisor(logs, environment) as supervisor:
        yield supervisor


@contextlib.contextmanager
def _people(places: Places, url: str) -> Iterator[CoordinatorHost]:
    handover: Path = places.handover
    host = sign_in(url, root_file=handover / "root.pem", admin_token_file=handover / "admin.token", folder=places.home)
    try:
        yield host
    finally:
        host.close()


def _rounds(text: str) -> int | None:
    # A variable of a compose file that nobody set is an empty text.
    return None if not text.strip() else integer_of({"rounds": json.loads(text)}, "rounds")


def _progress_for(shell: Shell) -> Progress:
    if shell.as_json:
        return PlainProgress(shell.err)
    return TerminalProgress(shell.out) if shell.out.is_terminal else PlainProgress(shell.out)


def _say_next(shell: Shell) -> None:
    shell.out.print()
    for line in _NEXT:
        shell.say(line)


def _stop_as_by_ctrl_c(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
