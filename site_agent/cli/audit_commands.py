"""``wardround-site audit`` and ``privacy``: what this site can show of itself."""

from __future__ import annotations

import sys
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from fl_protocol.audit.verify import AuditFault, AuditFaultReason
from site_agent.audit.export import export_log
from site_agent.audit.siem_feed import FeedOptions, write_feed
from site_agent.audit.store import read_log, verify_stored_log
from site_agent.cli.console import FAILED, NotInThisVersionError, SiteConsole, UsageError, console_of
from site_agent.cli.open_site import open_site

audit_app = typer.Typer(no_args_is_help=True, help="The site's tamper-evident record.")
privacy_app = typer.Typer(no_args_is_help=True, help="What was spent of each dataset's privacy.")

_FOLLOW_EVERY_S = 2.0
_FAULT_SENTENCES = {
    AuditFaultReason.CHECKPOINT_SIGNATURE: "this checkpoint is not signed by this site's key",
    AuditFaultReason.CHECKPOINT_ORIGIN: "this checkpoint belongs to another log",
    AuditFaultReason.ALTERED: "its content is not what was recorded",
    AuditFaultReason.DROPPED: "it is missing",
    AuditFaultReason.REORDERED: "another row stands in its place",
    AuditFaultReason.INSERTED: "it was put there by something else than this program",
    AuditFaultReason.TRUNCATED: "the log ends before it, although it was recorded",
    AuditFaultReason.REWRITTEN: "from here on rows were replaced together with their hashes",
}


class ExportForm(StrEnum):
    """What an export is written as."""

    JSONL = "jsonl"
    CEF = "cef"


@audit_app.command()
def verify(context: typer.Context) -> None:
    """Check every row, every link and every signed checkpoint; exit code 1 when something was altered.

    Example: wardround-site audit verify
    """
    console = console_of(context)
    with open_site(console) as site:
        log = site.db.run_read("read_log", read_log)
        verdict = verify_stored_log(log, site.signer.spki_der, origin=site.origin)
    if isinstance(verdict, AuditFault):
        _answer_fault(console, verdict)
        raise typer.Exit(FAILED)
    console.answer(
        {"is_verified": True, "size": verdict.size, "head": verdict.head},
        f"The audit log is whole: {verdict.size} rows.",
        f"Head {verdict.head}",
    )


@audit_app.command()
def export(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; - is standard output.")],
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
    """Write the log as JSON lines that others can verify. A log that was altered is not exported.

    Or write its events as syslog lines with a CEF message, for a SIEM; with --cursor every event is written, also
    across restarts of whoever runs this.

    Example: wardround-site audit export audit.jsonl
    """
    console = console_of(context)
    if form is ExportForm.CEF:
        _export_cef(console, file, since_seq=since_seq, cursor=cursor, follow=follow)
        return
    if follow or cursor is not None or since_seq >= 0 or str(file) == "-":
        raise UsageError("--follow, --cursor, --since-seq and standard output are for --format cef")
    if file.exists() and not replace:
        raise UsageError(f"{file} is there, and an older export may be evidence: name another file, or add --replace")
    with open_site(console) as site:
        log = site.db.run_read("read_log", read_log)
        verdict = verify_stored_log(log, site.signer.spki_der, origin=site.origin)
        if isinstance(verdict, AuditFault):
            _answer_fault(console, verdict)
            raise typer.Exit(FAILED)
        n_lines = export_log(log, site.signer.spki_der, origin=site.origin, to=file)
    document = {"file": str(file), "lines": n_lines, "size": verdict.size, "head": verdict.head}
    console.answer(document, f"Wrote {n_lines} lines to {file}: {verdict.size} rows, head {verdict.head}.")


def _export_cef(console: SiteConsole, file: Path, *, since_seq: int, cursor: Path | None, follow: bool) -> None:
    with open_site(console) as site:
        options = FeedOptions(
            since_seq=since_seq,
            cursor=cursor,
            poll_s=_FOLLOW_EVERY_S if follow else None,
            origin=site.origin,
            version=version("wardround"),
        )
        if str(file) == "-":
            write_feed(site.db, sys.stdout, options)
            return
        with file.open("a", encoding="utf-8", newline="\n") as out:
            n_lines = write_feed(site.db, out, options)
    console.answer({"file": str(file), "lines": n_lines}, f"Wrote {n_lines} lines to {file}.")


@privacy_app.command()
def ledger(context: typer.Context) -> None:
    """Show what was spent of each dataset's privacy budget: not in this version."""
    raise _not_in_this_version("privacy ledger", context)


def _not_in_this_version(command: str, context: typer.Context) -> NotInThisVersionError:
    console_of(context)
    return NotInThisVersionError(f"'{command}' is not in this version")


def _answer_fault(console: SiteConsole, fault: AuditFault) -> None:
    is_checkpoint = fault.reason in {AuditFaultReason.CHECKPOINT_SIGNATURE, AuditFaultReason.CHECKPOINT_ORIGIN}
    what = "checkpoint" if is_checkpoint else "row"
    sentence = _FAULT_SENTENCES[fault.reason]
    document = {"is_verified": False, what: fault.seq, "reason": fault.reason.value, "message": sentence}
    console.answer(
        document,
        f"The audit log was altered. {what.capitalize()} {fault.seq}: {sentence}.",
        "Keep the file site.db as it is, and tell the privacy officer.",
    )
