"""``wardround rounds``: what each round of a run did."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated

import typer
from rich.text import Text

from fl_protocol.spec.run_spec import parse_run_spec
from wardround.cli.runs import RunName
from wardround.cli.shell import cell, shell_of
from wardround.documents import Document, as_document, documents_of, text_of
from wardround.errors import EvidenceFaultError
from wardround.evidence.sum_reexecution import reexecute_sum

rounds_app = typer.Typer(no_args_is_help=True, help="Rounds of a run: list, show, check-sum.")

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
_SUM_FACTS = (
    ("run", "run_id"),
    ("round", "round_index"),
    ("sites in the sum", "sites"),
    ("sites lost on the way", "lost_sites"),
    ("bytes", "n_bytes"),
    ("sum, SHA-256", "sum_sha256"),
    ("transcript root", "transcript_root"),
    ("coordinator's key", "coordinator_key_sha256"),
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


@rounds_app.command("check-sum", epilog="Example: wardround rounds check-sum run-abc 0 --key SHA256")
def check_sum(
    context: typer.Context,
    run: RunName,
    index: Annotated[int, typer.Argument(help="The round's index, from 0.", min=0, metavar="INDEX")],
    key: Annotated[
        str | None, typer.Option("--key", help="SHA-256 of the coordinator's signing key, as a site pinned it.")
    ] = None,
) -> None:
    """Make a round's sum again from the sites' signed uploads, within its audit window; exit code 1 if it is false."""
    shell = shell_of(context)
    base = f"/api/v1/runs/{run}/rounds/{index}/sum"
    with shell.connect() as client:
        spec = parse_run_spec(section_of_run(client.get(f"/api/v1/runs/{run}")))
        keys = client.get("/api/v1/releases/keys")
        found = text_of(keys, "coordinator_signing_key_sha256")
        if key is not None and key.lower() != found:
            raise EvidenceFaultError("the coordinator signs with another key than the expected one", found=found)
        checked = reexecute_sum(
            client.content(f"{base}/record"),
            client.stream(f"{base}/vector"),
            lambda site: client.stream(f"{base}/uploads/{site}"),
            spec=spec,
            coordinator_spki=base64.b64decode(text_of(keys, "coordinator_signing_spki")),
            tell=shell.say,
        )
    shell.show_facts(checked.to_document(), _SUM_FACTS)
    shell.say("The published sum is what these sites uploaded, and nothing else.")
    if key is None:
        shell.say("Compare the coordinator's key with the one that a site pinned: wardround-site identity show")


def section_of_run(document: Document) -> Document:
    """The RunSpec in a run's answer."""
    return as_document(document.get("run_spec"), source="run_spec")


def _with_report(document: Document) -> Document:
    report = document.get("report")
    return {**document, **report} if isinstance(report, Mapping) else document
