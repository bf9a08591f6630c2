"""``wardround-site datasets``: which data may be used at all."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from site_agent.approvals.withdraw_dataset import withdraw_dataset_and_runs
from site_agent.cli.console import FAILED, SiteConsole, console_of, local_user, table
from site_agent.cli.open_site import open_site
from site_agent.datasets.declaration import load_declaration
from site_agent.datasets.errors import DatasetFileError
from site_agent.datasets.registry import (
    RegisteredDataset,
    check_dataset,
    list_datasets,
    register_dataset,
)
from site_agent.db.instants import instant_text
from site_agent.runners import inspector_of

app = typer.Typer(no_args_is_help=True, help="Which data may be used at all.")


@app.command()
def register(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="What the dataset is, where, and what for.")],
) -> None:
    """Inspect a data file in a process of its own and put it on the register; no record is read here.

    Example: wardround-site datasets register medical-qa.yaml
    """
    console = console_of(context)
    declaration = load_declaration(file)
    with open_site(console) as site:
        console.say(f"Inspecting the data of {declaration.name} ...")
        try:
            dataset = register_dataset(
                site.db,
                site.audit,
                declaration,
                inspector=inspector_of(site.settings),
                actor=f"user:{local_user()}",
                now=console.clock.now(),
            )
        except DatasetFileError as error:
            _tell_faults(console, error, declaration.name)
            raise
    console.answer(
        _document(dataset),
        f"Registered {dataset.name}: {dataset.n_records} records of {dataset.n_patients} patients.",
        f"SHA-256 {dataset.sha256}",
        "The policy decides its use: name it under 'datasets' in policy.yaml.",
    )


@app.command(name="list")
def list_command(
    context: typer.Context,
    all_: Annotated[bool, typer.Option("--all", help="With those that were withdrawn.")] = False,  # noqa: FBT002 - a switch
) -> None:
    """Show the register.

    Example: wardround-site datasets list
    """
    console = console_of(context)
    with open_site(console) as site:
        datasets = site.db.run_read("list_datasets", lambda session: list_datasets(session, with_withdrawn=all_))
    rows = [
        (
            dataset.name,
            dataset.n_records,
            dataset.n_patients,
            ", ".join(dataset.purposes),
            _standing(dataset, console.clock.now()),
            dataset.sha256[:16],
        )
        for dataset in datasets
    ]
    drawn = table(("name", "records", "patients", "purposes", "state", "sha256"), rows)
    nothing = "No dataset is registered. 'wardround-site datasets register FILE.yaml' registers one."
    console.answer({"items": [_document(dataset) for dataset in datasets]}, drawn if rows else nothing)


@app.command()
def check(context: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Look at every record of a dataset's file, name each fault's file, line and field, and compare the file's digest.

    What stands there is never shown. Example: wardround-site datasets check medical-qa
    """
    console = console_of(context)
    with open_site(console) as site:
        try:
            verdict = check_dataset(
                site.db, site.audit, name, inspector=inspector_of(site.settings), actor=f"user:{local_user()}"
            )
        except DatasetFileError as error:
            _tell_faults(console, error, name)
            raise
    document = {
        "name": name,
        "is_unchanged": verdict.is_unchanged,
        "registered_sha256": verdict.dataset.sha256,
        "found_sha256": verdict.found.sha256,
        "registered_records": verdict.dataset.n_records,
        "found_records": verdict.found.n_records,
        "registered_patients": verdict.dataset.n_patients,
        "found_patients": verdict.found.n_patients,
    }
    if verdict.is_unchanged:
        console.answer(document, f"{name} is unchanged: {verdict.found.n_records} records.")
        return
    console.answer(
        document,
        f"{name} has changed: registered with {verdict.dataset.n_records} records, now {verdict.found.n_records}.",
        f"If that is meant: 'wardround-site datasets withdraw {name}', then register it again.",
    )
    raise typer.Exit(FAILED)


@app.command()
def withdraw(context: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Take a dataset out of use at once, and withdraw this site from every run that was approved over it.

    Training on it stops within a second or two. Example: wardround-site datasets withdraw medical-qa
    """
    console = console_of(context)
    with open_site(console) as site:
        withdrawal = withdraw_dataset_and_runs(
            site.db, site.audit, name, signer=site.signer, local_user=local_user(), now=console.clock.now()
        )
    runs = ", ".join(withdrawal.run_ids) or "no run"
    document = {**_document(withdrawal.dataset), "withdrawn_runs": list(withdrawal.run_ids)}
    console.answer(document, f"Withdrew {name}, and with it the approval of {runs}.")


def _tell_faults(console: SiteConsole, error: DatasetFileError, name: str) -> None:
    """The places of what is wrong with the file; the error that follows says what to do."""
    for fault in error.faults:
        console.say(f"{name}: {fault}")
    n_more = error.n_faults - len(error.faults)
    if n_more > 0:
        console.say(f"{name}: and {n_more} more")


def _document(dataset: RegisteredDataset) -> dict[str, object]:
    return {
        "name": dataset.name,
        "path": str(dataset.path),
        "format": dataset.format,
        "purposes": list(dataset.purposes),
        "description": dataset.description,
        "sha256": dataset.sha256,
        "records": dataset.n_records,
        "patients": dataset.n_patients,
        "registered_at": instant_text(dataset.registered_at),
        "registered_by": dataset.registered_by,
        "withdrawn_at": None if dataset.withdrawn_at is None else instant_text(dataset.withdrawn_at),
        "legal_basis": dataset.legal_basis,
        "consent": dataset.consent,
        "expires_on": None if dataset.expires_on is None else dataset.expires_on.isoformat(),
        "patient_field": dataset.patient_field,
        "schema": None if dataset.schema is None else dataset.schema.to_document(),
    }


def _standing(dataset: RegisteredDataset, now: datetime) -> str:
    if dataset.is_withdrawn:
        return "withdrawn"
    if dataset.expires_on is None:
        return "in use"
    return f"expired {dataset.expires_on}" if dataset.is_expired(now) else f"in use until {dataset.expires_on}"
