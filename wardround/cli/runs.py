"""``wardround runs``: create a run from a file, start it, and see what it does and what it waits for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from wardround.cli.shell import Shell, cell, shell_of
from wardround.cli.watching import watch_until_end
from wardround.client.run_upload import check_spec, create_run, read_initial_adapter, read_spec_file
from wardround.documents import Document, documents_of, text_of

runs_app = typer.Typer(no_args_is_help=True, help="Runs: create, list, show, watch, start, pause, resume, cancel.")

RunName = Annotated[str, typer.Argument(help="The run's identifier, run-...; see: wardround runs list", metavar="RUN")]
Reason = Annotated[str | None, typer.Option("--reason", help="Why; it stands in the audit log.")]

_COLUMNS = (
    ("run", "run_id"),
    ("name", "name"),
    ("state", "state"),
    ("rounds done", "rounds_committed"),
    ("of", "rounds_total"),
    ("waits for", "waits_for"),
)
_FACTS = (
    ("run", "run_id"),
    ("name", "name"),
    ("state", "state"),
    ("reason", "reason"),
    ("waits for", "waits_for"),
    ("rounds done", "rounds_committed"),
    ("of", "rounds_total"),
    ("specification", "run_spec_sha256"),
    ("created by", "created_by"),
    ("created", "created_at"),
    ("finished", "finished_at"),
    ("releases", "releases"),
)


@runs_app.command("create", epilog="Example: wardround runs create -f run.yaml --adapter adapter/")
def create(
    context: typer.Context,
    file: Annotated[Path, typer.Option("--file", "-f", help="The run specification, YAML or JSON.")],
    adapter: Annotated[
        Path, typer.Option("--adapter", help="The folder that 'python -m site_agent.training init-adapter' wrote.")
    ],
) -> None:
    """Create a run in the state DRAFT; every fault of the file is listed before anything is sent."""
    shell = shell_of(context)
    document = read_spec_file(file)
    # Before the adapter is asked for: a wrong specification cannot have one.
    check_spec(document)
    initial = read_initial_adapter(adapter)
    with shell.connect() as client:
        run = create_run(client, document, initial)
    _show(shell, run)
    shell.say(f"Next, by another study lead or admin than you: wardround runs start {text_of(run, 'run_id')}")


@runs_app.command("list", epilog="Example: wardround runs list")
def list_runs(context: typer.Context) -> None:
    """List every run, its state, and what it waits for."""
    shell = shell_of(context)
    with shell.connect() as client:
        nothing = "There is no run yet. Create one: wardround runs create -f run.yaml --adapter DIR"
        shell.show_list(client.pages("/api/v1/runs"), _COLUMNS, nothing=nothing)


@runs_app.command("show", epilog="Example: wardround runs show run-abc")
def show_run(context: typer.Context, run: RunName) -> None:
    """Show one run: its state, what it waits for, and what each site said to it."""
    shell = shell_of(context)
    with shell.connect() as client:
        _show(shell, client.get(f"/api/v1/runs/{run}"))


@runs_app.command("watch", epilog="Example: wardround runs watch run-abc")
def watch_run(context: typer.Context, run: RunName) -> None:
    """Follow a run until it has ended; exit code 1 where it failed or was cancelled."""
    shell = shell_of(context)
    with shell.connect() as client:
        ended = watch_until_end(shell, client, run_id=run)
    if shell.as_json:
        shell.show_document(ended)
    if ended.get("state") != "COMPLETED":
        raise typer.Exit(1)


@runs_app.command("start", epilog="Example: wardround runs start run-abc")
def start_run(context: typer.Context, run: RunName) -> None:
    """Ask the sites for their approval; the run begins once a quorum has given it.

    Whoever created the run does not start it, unless the coordinator's operator turned that off.
    """
    _act(context, run, "start")


@runs_app.command("pause", epilog="Example: wardround runs pause run-abc")
def pause_run(context: typer.Context, run: RunName, reason: Reason = None) -> None:
    """Open no further round; the present one is finished."""
    _act(context, run, "pause", reason=reason)


@runs_app.command("resume", epilog="Example: wardround runs resume run-abc")
def resume_run(context: typer.Context, run: RunName) -> None:
    """Go on with a paused run."""
    _act(context, run, "resume")


@runs_app.command("cancel", epilog='Example: wardround runs cancel run-abc --reason "wrong dataset"')
def cancel_run(context: typer.Context, run: RunName, reason: Reason = None) -> None:
    """End a run for good; what its sites hold for the present round is thrown away."""
    _act(context, run, "cancel", reason=reason)


def _act(context: typer.Context, run: str, action: str, *, reason: str | None = None) -> None:
    shell = shell_of(context)
    with shell.connect() as client:
        changed = client.post(f"/api/v1/runs/{run}:{action}", {"reason": reason} if reason else {})
    _show(shell, changed)


def _show(shell: Shell, run: Document) -> None:
    shell.show_facts(run, _FACTS)
    if shell.as_json:
        return
    for approval in documents_of(run, "approvals"):
        sentence = f"{cell(approval.get('site_id'))} {cell(approval.get('decision'))} at {cell(approval.get('at'))}"
        until = approval.get("expires_at")
        shell.out.print(Text(f"  {sentence}{f' until {cell(until)}' if until is not None else ''}"))
