"""``wardround-site datasets``: which data may be used at all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from site_agent.cli.console import FAILED, console_of, local_user, table
from site_agent.cli.open_site import open_site
from site_agent.datasets.declaration import load_declaration
from site_agent.datasets.inspector import SubprocessInspector
from site_agent.datasets.registry import (
    RegisteredDataset,
    check_dataset,
    list_datasets,
    register_dataset,
    withdraw_dataset,
)
from site_agent.db.instants import instant_text

app = typer.Typer(no_args_is_help=True, help="Which data may be used at all.")


@app.command()
def register(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="name, path, format and purposes of the dataset.")],
) -> None:
    """Inspect a data file in a process of its own and put it on the register; no record is read here.

    Example: wardround-site datasets register medical-qa.yaml
    """
    console = console_of(context)
    declaration = load_declaration(file)
    with open_site(console) as site:
        console.say(f"Inspecting the data of {declaration.name} ...")
        dataset = register_dataset(
            site.db,
            site.audit,
            declaration,
            inspector=SubprocessInspector(),
            actor=f"user:{local_user()}",
            now=console.clock.now(),
        )
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
            "withdrawn" if dataset.is_withdrawn else "in use",
            dataset.sha256[:16],
        )
        for dataset in datasets
    ]
    drawn = table(("name", "records", "patients", "purposes", "state", "sha256"), rows)
    nothing = "No dataset is registered. 'wardround-site datasets register FILE.yaml' registers one."
    console.answer({"items": [_document(dataset) for dataset in datasets]}, drawn if rows else nothing)


@app.command()
def check(context: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Compare a dataset's file with what was registered.

    Example: wardround-site datasets check medical-qa
    """
    console = console_of(context)
    with open_site(console) as site:
        verdict = check_dataset(site.db, name, inspector=SubprocessInspector())
    document = {
        "name": name,
        "is_unchanged": verdict.is_unchanged,
        "registered_sha256": verdict.dataset.sha256,
        "found_sha256": verdict.found.sha256,
        "registered_records": verdict.dataset.n_records,
        "found_records": verdict.found.n_records,
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
    """Take a dataset out of use, from the next round on.

    Example: wardround-site datasets withdraw medical-qa
    """
    console = console_of(context)
    with open_site(console) as site:
        dataset = withdraw_dataset(site.db, site.audit, name, actor=f"user:{local_user()}", now=console.clock.now())
    console.answer(_document(dataset), f"Withdrew {name}. No round that opens from now on uses it.")


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
    }
