"""``wardround audit``: take the coordinator's log and verify it here, where the coordinator has no say."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, TextIO

import typer

from wardround.cli.shell import shell_of
from wardround.errors import NotFoundError, UsageInvalidError
from wardround.evidence.audit_export import ExportFile, verify_export
from wardround.evidence.compare_logs import ComparedSite, compare_exports
from wardround.evidence.siem_feed import FeedOptions, write_feed

audit_app = typer.Typer(no_args_is_help=True, help="The coordinator's audit log: verify, export.")

_FOLLOW_EVERY_S = 2.0
_EXPORT = "/api/v1/audit/export"
_FACTS = (
    ("log", "origin"),
    ("rows", "size"),
    ("head", "head"),
    ("not yet signed", "n_unsigned"),
    ("key", "key_sha256"),
)


class ExportForm(StrEnum):
    """What an export is written as."""

    JSONL = "jsonl"
    CEF = "cef"


@audit_app.command("verify", epilog="Example: wardround audit verify --key SHA256")
def verify_audit(
    context: typer.Context,
    export: Annotated[
        Path | None, typer.Argument(help="An export to verify, instead of asking for one.", metavar="[FILE]")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="The same as FILE.")] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="SHA-256 of the coordinator's signing key, as a site pinned it.")
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option("--with", help="A site's export, to compare what each log says of the other; may be repeated."),
    ] = None,
) -> None:
    """Verify every row and every signed checkpoint; where it fails, the row is named and the exit code is 1.

    With the logs of sites it also finds a coordinator, or a site, that has shown two histories.
    """
    shell = shell_of(context)
    with TemporaryDirectory(prefix="wardround-audit-") as folder:
        path = export or file
        if path is None:
            path = Path(folder) / "audit.jsonl"
            with shell.connect() as client:
                client.download(_EXPORT, path)
        sites = [_export_at(each) for each in beside or ()]
        verified, compared = (
            compare_exports(_export_at(path), sites, expected_key_sha256=key)
            if sites
            else (
                verify_export(_export_at(path), expected_key_sha256=key),
                (),
            )
        )
    document = verified.to_document()
    if compared:
        document["compared"] = [asdict(site) for site in compared]
    shell.show_facts(document, _FACTS)
    for site in compared:
        shell.say(_compared_sentence(site))
    for restore in verified.restores:
        shell.say(
            f"Row {restore.row}: restored from a backup of {restore.restored_size} rows (epoch {restore.epoch})."
            " A longer head that a site holds from before is no fork."
        )
    if key is None:
        shell.say("The log is whole. Compare the key with the one that a site pinned: wardround-site identity show")
    else:
        shell.say("The log is whole, and signed by the expected key.")


def _export_at(path: Path) -> ExportFile:
    try:
        path.open("rb").close()
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read ({error.strerror})") from error
    return ExportFile(path)


def _compared_sentence(site: ComparedSite) -> str:
    lost = f", {site.n_lost} of them before a restore that took them back" if site.n_lost else ""
    return (
        f"{site.origin}: whole, {site.size} rows. It was shown {site.n_shown} heads of this log{lost},"
        f" and stated {site.n_told} of its own; all fit."
    )


@audit_app.command("export", epilog="Example: wardround audit export audit.jsonl")
def export_audit(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The file to write; - is standard output.", metavar="FILE")],
    form: Annotated[
        ExportForm, typer.Option("--format", help="jsonl can be verified; cef is syslog lines for a SIEM.")
    ] = ExportForm.JSONL,
    since_seq: Annotated[
        int, typer.Option("--since-seq", min=-1, help="cef: the last event that is known already.")
    ] = -1,
    cursor: Annotated[
        Path | None, typer.Option("--cursor", help="cef: a file that remembers the last event that was written.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="cef: go on, and write what happens.")] = False,  # noqa: FBT002 - an option
    replace: Annotated[bool, typer.Option("--replace", help="jsonl: overwrite FILE where it is there.")] = False,  # noqa: FBT002 - an option
) -> None:
    """Write the whole log with its checkpoints as JSON lines, which can be verified without the coordinator.

    Or write its events as syslog lines with a CEF message, for a SIEM; with --cursor every event is written, also
    across restarts of whoever runs this.
    """
    shell = shell_of(context)
    if form is ExportForm.CEF:
        options = FeedOptions(
            since_seq=since_seq,
            cursor=cursor,
            poll_s=_FOLLOW_EVERY_S if follow else None,
            origin="coordinator",
            version=version("wardround"),
        )
        with shell.connect() as client, _opened(file) as out:
            n_lines = write_feed(client, out, options)
        if str(file) == "-":
            return
    else:
        if follow or cursor is not None or since_seq >= 0 or str(file) == "-":
            message = "--follow, --cursor, --since-seq and standard output are for --format cef"
            raise UsageInvalidError(message, advice="A log that can be verified is whole: wardround audit export FILE")
        if file.exists() and not replace:
            message = f"{file} is there, and an older export may be evidence"
            raise UsageInvalidError(message, advice="Name another file, or add --replace.")
        with shell.connect() as client:
            client.download(_EXPORT, file)
        with file.open("rb") as lines:
            n_lines = sum(1 for _ in lines)
    shell.show_facts({"file": str(file), "lines": n_lines}, (("file", "file"), ("lines", "lines")))


@contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
    if str(file) == "-":
        yield sys.stdout
        return
    try:
        with file.open("a", encoding="utf-8", newline="\n") as out:
            yield out
    except OSError as error:
        raise UsageInvalidError(f"{file} cannot be written ({error.strerror})", advice="Name another file.") from error
