"""``wardround-site audit`` and ``privacy``: what this site can show of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fl_protocol.audit.verify import AuditFault, AuditFaultReason
from site_agent.audit.export import export_log
from site_agent.audit.store import read_log, verify_stored_log
from site_agent.cli.console import FAILED, NotInThisVersionError, SiteConsole, console_of
from site_agent.cli.open_site import open_site

audit_app = typer.Typer(no_args_is_help=True, help="The site's tamper-evident record.")
privacy_app = typer.Typer(no_args_is_help=True, help="What was spent of each dataset's privacy.")

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
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the JSON lines.")],
) -> None:
    """Write the log as JSON lines that others can verify. A log that was altered is not exported.

    Example: wardround-site audit export audit.jsonl
    """
    console = console_of(context)
    with open_site(console) as site:
        log = site.db.run_read("read_log", read_log)
        verdict = verify_stored_log(log, site.signer.spki_der, origin=site.origin)
        if isinstance(verdict, AuditFault):
            _answer_fault(console, verdict)
            raise typer.Exit(FAILED)
        n_lines = export_log(log, site.signer.spki_der, origin=site.origin, to=file)
    document = {"file": str(file), "lines": n_lines, "size": verdict.size, "head": verdict.head}
    console.answer(document, f"Wrote {n_lines} lines to {file}: {verdict.size} rows, head {verdict.head}.")


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
