"""``wardround audit``: take the coordinator's log and verify it here, where the coordinator has no say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardround.cli.shell import shell_of
from wardround.errors import NotFoundError
from wardround.evidence.audit_export import verify_export

audit_app = typer.Typer(no_args_is_help=True, help="The coordinator's audit log: verify, export.")

_EXPORT = "/api/v1/audit/export"
_FACTS = (
    ("log", "origin"),
    ("rows", "size"),
    ("head", "head"),
    ("not yet signed", "n_unsigned"),
    ("key", "key_sha256"),
)


@audit_app.command("verify", epilog="Example: wardround audit verify --key SHA256")
def verify_audit(
    context: typer.Context,
    file: Annotated[Path | None, typer.Option("--file", help="An export to verify, instead of asking for one.")] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="SHA-256 of the coordinator's signing key, as a site pinned it.")
    ] = None,
) -> None:
    """Verify every row and every signed checkpoint; where it fails, the row is named and the exit code is 1."""
    shell = shell_of(context)
    if file is None:
        with shell.connect() as client:
            text = client.text(_EXPORT)
    else:
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise NotFoundError(f"{file} cannot be read ({error.strerror})") from error
    verified = verify_export(text.splitlines(), expected_key_sha256=key)
    shell.show_facts(verified.to_document(), _FACTS)
    for restore in verified.restores:
        shell.say(
            f"Row {restore.row}: restored from a backup of {restore.restored_size} rows (epoch {restore.epoch})."
            " A longer head that a site holds from before is no fork."
        )
    if key is None:
        shell.say("The log is whole. Compare the key with a site's: wardround-site identity show")
    else:
        shell.say("The log is whole, and signed by the expected key.")


@audit_app.command("export", epilog="Example: wardround audit export audit.jsonl")
def export_audit(
    context: typer.Context, file: Annotated[Path, typer.Argument(help="The file to write.", metavar="FILE")]
) -> None:
    """Write the whole log with its checkpoints as JSON lines; it can be verified without the coordinator."""
    shell = shell_of(context)
    with shell.connect() as client:
        client.download(_EXPORT, file)
    n_lines = sum(1 for _ in file.open("rb"))
    shell.show_facts({"file": str(file), "lines": n_lines}, (("file", "file"), ("lines", "lines")))
