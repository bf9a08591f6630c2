"""``wardround rounds``: what each round of a run did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer
from rich.text import Text

from wardround.cli.runs import RunName
from wardround.cli.shell import cell, shell_of
from wardround.documents import Document, documents_of

rounds_app = typer.Typer(no_args_is_help=True, help="Rounds of a run: list, show.")

_COLUMNS = (
    ("round", "round_index"),
    ("kind", "kind"),
    ("state", "state"),
    ("seconds", "seconds"),
    ("train loss", "train_loss"),
    ("eval loss", "eval_loss"),
    ("bytes up", "bytes_up"),
    ("bytes down", "bytes_down"),
    ("counted", "counted_sites"),
    ("reason", "reason"),
)
_PARTICIPATION_KEYS = ("site_id", "state", "activity", "step", "steps", "reason")


@rounds_app.command("list", epilog="Example: wardround rounds list run-abc")
def list_rounds(context: typer.Context, run: RunName) -> None:
    """List the rounds of a run with the losses of all sites together."""
    shell = shell_of(context)
    with shell.connect() as client:
        rounds = list(client.pages(f"/api/v1/runs/{run}/rounds"))
    rows = rounds if shell.as_json else [_with_report(document) for document in rounds]
    shell.show_list(rows, _COLUMNS, nothing="No round was opened yet. What the run waits for: wardround runs show RUN")


@rounds_app.command("show", epilog="Example: wardround rounds show run-abc 0")
def show_round(
    context: typer.Context,
    run: RunName,
    index: Annotated[int, typer.Argument(help="The round's index, from 0.", min=0, metavar="INDEX")],
) -> None:
    """Show one round: every site's part in it, and the exchange."""
    shell = shell_of(context)
    with shell.connect() as client:
        document = client.get(f"/api/v1/runs/{run}/rounds/{index}")
    shell.show_facts(document if shell.as_json else _with_report(document), (*_COLUMNS, ("exchange", "exchange")))
    if shell.as_json:
        return
    for participation in documents_of(document, "participations"):
        told = [cell(participation.get(key)) for key in _PARTICIPATION_KEYS if participation.get(key) is not None]
        shell.out.print(Text(f"  {' '.join(told)}"))


def _with_report(document: Document) -> Document:
    report = document.get("report")
    return {**document, **report} if isinstance(report, Mapping) else document
