"""``wardround-site runs``: the steward's word on runs. The running agent sends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from typing import Annotated, Protocol

import typer

from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody
from site_agent.approvals.approve_run import StewardWord, approve_run, decline_run, withdraw_run
from site_agent.approvals.errors import PeersUnlistedError, RunDocumentInvalidError
from site_agent.approvals.run_records import PENDING, RunRecord, find_run, list_runs, set_paused
from site_agent.audit.store import AuditLog
from site_agent.cli.console import SiteConsole, UsageError, console_of, local_user, table
from site_agent.cli.open_site import OpenSite, open_site
from site_agent.cli.run_page import RunPage, page_lines, run_document
from site_agent.db.instants import instant_from_text, instant_text
from site_agent.db.tx import SiteDb
from site_agent.policy.evaluate import Denied, evaluate_run
from site_agent.policy.explain import sentence_for_rule
from site_agent.state.reveal_release import UnresolvedReveal, release_reveals, unresolved_reveals

app = typer.Typer(no_args_is_help=True, help="The site's word on runs.")
_SENT_BY_AGENT = "The agent sends it as soon as it runs ('wardround-site start')."

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's identifier.")]


@app.command()
def pending(context: typer.Context) -> None:
    """List the runs that wait for this site's word.

    Example: wardround-site runs pending
    """
    console = console_of(context)
    with open_site(console) as site:
        records = site.db.run_read("list_runs", lambda session: list_runs(session, state=PENDING))
        items = [
            {**_head(record), "denied_by": _denied_rule(site, record, now=console.clock.now())} for record in records
        ]
    rows = [(item["run_id"], item["name"], item["dataset"], item["denied_by"] or "permitted") for item in items]
    drawn = table(("run", "name", "dataset", "policy"), rows)
    nothing = "No run waits. The agent must be running to see new ones."
    console.answer({"items": items}, drawn if rows else nothing)


@app.command()
def show(context: typer.Context, run: RunArgument) -> None:
    """Show a run on one page: what it does, with whom, and what the policy says.

    Example: wardround-site runs show run-...
    """
    console = console_of(context)
    with open_site(console) as site:
        record, judgement = site.judge(run, now=console.clock.now())
    page = RunPage(record=record, run_spec=record.run.run_spec(), judgement=judgement, now=console.clock.now())
    console.answer(run_document(page), *page_lines(page))


@app.command()
def approve(
    context: typer.Context,
    run: RunArgument,
    purpose: Annotated[str | None, typer.Option("--purpose", help="Under which permitted purpose.")] = None,
    accept_unlisted: Annotated[  # noqa: FBT002 - a switch
        bool, typer.Option("--accept-unlisted", help="Accept sites whose keys were not compared; this is recorded.")
    ] = False,
    until: Annotated[
        str | None, typer.Option("--until", help="Last day (2027-06-30) or instant; at most the policy's lifetime.")
    ] = None,
) -> None:
    """Say yes to a run, signed by this site's key, until a day; said again with --until, the end is another.

    Example: wardround-site runs approve run-... --purpose research --until 2027-06-30
    """
    console = console_of(context)
    word = StewardWord(
        local_user=local_user(), purpose=purpose, accept_unlisted=accept_unlisted, until=_end_from_text(until)
    )
    with open_site(console) as site:
        try:
            _approve(console, site, run, word)
        except PeersUnlistedError as error:
            if not console.is_interactive:
                raise
            console.say(error.message)
            if not typer.confirm("Accept these sites all the same? This is recorded."):
                raise
            _approve(console, site, run, replace(word, accept_unlisted=True))
        record = site.db.run_read("find_run", lambda session: find_run(session, run))
    end = "" if record.expires_at is None else f", until {record.expires_at:%Y-%m-%d %H:%M} UTC"
    line = f"Approved {record.run.name} for {record.dataset}, purpose: {record.purpose}{end}. {_SENT_BY_AGENT}"
    console.answer(_head(record), line)


@app.command()
def decline(
    context: typer.Context,
    run: RunArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; it stays at this site.")],
) -> None:
    """Say no to a run that waits; of one that was approved it is the same as 'withdraw'.

    Example: wardround-site runs decline run-... --reason "not covered by the ethics vote"
    """
    _say_no(console_of(context), run, reason=reason, say=decline_run)


@app.command()
def withdraw(
    context: typer.Context,
    run: RunArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; it stays at this site.")],
) -> None:
    """Take this site's approval of a run back, for good: its training stops at once, its next rounds go without you.

    A pause ('runs pause') is for the whole site and ends with 'resume'; this is for one run and does not end.
    Example: wardround-site runs withdraw run-... --reason "consent was withdrawn"
    """
    _say_no(console_of(context), run, reason=reason, say=withdraw_run)


@app.command()
def pause(context: typer.Context) -> None:
    """Join no new round until 'resume'. In one that is under way training goes on, and nothing of it is sent any more.

    Example: wardround-site runs pause
    """
    _switch(console_of(context), is_paused=True)


@app.command()
def resume(context: typer.Context) -> None:
    """Join rounds again.

    Example: wardround-site runs resume
    """
    _switch(console_of(context), is_paused=False)


@app.command()
def release(
    context: typer.Context,
    run: RunArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; for machines. It is recorded all the same.")] = False,  # noqa: FBT002 - a switch
) -> None:
    """Let this site take part again after a secure sum whose result it never saw.

    This site revealed shares and then heard nothing more, so it refuses every further round that would sum the same
    state over other sites. Say 'release' only when the coordinator's admin confirms that the sum was never made.

    Example: wardround-site runs release run-...
    """
    console = console_of(context)
    with open_site(console) as site:
        run_id = site.db.run_read("find_run", lambda session: find_run(session, run)).run.run_id
        reveals = site.db.run_read("unresolved-reveals", lambda session: unresolved_reveals(session, run_id))
        for line in _release_warning(reveals):
            console.say(line)
        if not yes:
            if not console.is_interactive:
                raise UsageError("this is a person's decision: run it at a terminal, or say --yes")
            typer.confirm("Release it all the same? This is recorded with your name.", abort=True)
        user = local_user()
        released = release_reveals(site.db, site.audit, run_id=run_id, local_user=user, now=console.clock.now())
    items = [
        {
            "round_index": reveal.round.round_index,
            "round_attempt": reveal.round.round_attempt,
            "survivors": [*reveal.survivors],
        }
        for reveal in released
    ]
    line = "Released. The site takes part again when the coordinator opens the next attempt."
    console.answer({"run_id": run_id, "released_by": user, "items": items}, line)


_RELEASE_MAY_COST = (
    "If that sum was made after all, whoever holds it and the next one can subtract them. What is left is what the "
    "sites sent that are in one of the two only, beside the difference of two updates from the same state: where the "
    "sums differ by one site, nearly that site's update and its losses alone. Nothing can take that back. Where you "
    "are not sure, ask for a new run instead."
)


def _release_warning(reveals: Sequence[UnresolvedReveal]) -> list[str]:
    lines = []
    for reveal in reveals:
        place = f"Round {reveal.round.round_index}, attempt {reveal.round.round_attempt}"
        survivors = ", ".join(reveal.survivors) or "sites whose names are not kept"
        lines.append(f"{place}: this site revealed shares for a sum over {survivors}, and never saw the result.")
    return [*lines, _RELEASE_MAY_COST]


def _approve(console: SiteConsole, site: OpenSite, run: str, word: StewardWord) -> None:
    _, judgement = site.judge(run, now=console.clock.now())
    approve_run(
        site.db, site.audit, signer=site.signer, run_id=run, judgement=judgement, word=word, now=console.clock.now()
    )


class _SayNo(Protocol):
    """One of the two ways in which a person says no."""

    def __call__(
        self, db: SiteDb, audit: AuditLog, *, signer: Signer, run_id: str, local_user: str, reason: str, now: datetime
    ) -> SignedBody:
        """Record it."""
        ...


def _say_no(console: SiteConsole, run: str, *, reason: str, say: _SayNo) -> None:
    if not reason.strip() or not reason.isprintable():
        raise UsageError("--reason is one printable line that is not empty")
    with open_site(console) as site:
        say(
            site.db,
            site.audit,
            signer=site.signer,
            run_id=run,
            local_user=local_user(),
            reason=reason.strip(),
            now=console.clock.now(),
        )
        record = site.db.run_read("find_run", lambda session: find_run(session, run))
    console.answer(_head(record), f"{record.state.capitalize()}: {record.run.name}. {_SENT_BY_AGENT}")


def _end_from_text(text: str | None) -> datetime | None:
    """A day stands for its end, in this machine's local time."""
    if text is None:
        return None
    try:
        day = date.fromisoformat(text)
    except ValueError:
        pass
    else:
        return datetime.combine(day + timedelta(days=1), time()).astimezone()
    try:
        return instant_from_text(text)
    except ValueError as error:
        message = "--until is a day (2027-06-30) or an instant with its time zone (2027-06-30T18:00:00Z)"
        raise UsageError(message) from error


def _switch(console: SiteConsole, *, is_paused: bool) -> None:
    with open_site(console) as site:
        set_paused(site.db, site.audit, is_paused=is_paused, actor=f"user:{local_user()}", now=console.clock.now())
    paused = "Paused: this site joins no new round, and sends no update of one that is under way. "
    line = f"{paused}'wardround-site runs resume' ends it." if is_paused else "Resumed."
    console.answer({"is_paused": is_paused}, line)


def _denied_rule(site: OpenSite, record: RunRecord, *, now: datetime) -> str | None:
    try:
        _, judgement = site.judge(record.run.run_id, now=now)
        verdict = evaluate_run(record.run.run_spec(), judgement.policy, judgement.ledger)
    except RunDocumentInvalidError as error:
        # One run that the coordinator broke does not hide the others.
        return error.message
    return f"{verdict.rule}: {sentence_for_rule(verdict.rule)}" if isinstance(verdict, Denied) else None


def _head(record: RunRecord) -> dict[str, object]:
    return {
        "run_id": record.run.run_id,
        "name": record.run.name,
        "state": record.state,
        "reason": record.reason,
        "run_spec_sha256": record.run.run_spec_sha256,
        "dataset": record.dataset,
        "purpose": record.purpose,
        "approved_by": record.approved_by,
        "expires_at": None if record.expires_at is None else instant_text(record.expires_at),
    }
