"""Words that did not get through: said again, in their order, each of the round that it is about."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from fl_protocol.ids import RunId
from fl_protocol.spec.context import ExchangeContext, RoundContext
from fl_protocol.testing.entropy import SeededEntropy
from site_agent.errors import CoordinatorRefusedError, CoordinatorUnavailableError
from site_agent.session import commands as do
from site_agent.session.events import DeclineKind, round_of
from site_agent.state.journal import ExchangeRecord, Journal
from site_agent.supervision.site_words import SiteWords

FIRST, SECOND = (RoundContext(run_id=RunId("run-" + "a" * 26), round_index=index, round_attempt=0) for index in (0, 1))
DECLINE = do.DeclineRound(kind=DeclineKind.FAILED, reason="payload-lost")


class Line:
    """What reaches the coordinator, while the line to it is up."""

    def __init__(self) -> None:
        self.is_up = True
        self.refuses = False
        self.heard: list[tuple[str, RoundContext]] = []

    async def accept_round(self, round_context: RoundContext) -> None:
        self._carry("accept", round_context)

    async def report_ready(self, round_context: RoundContext) -> None:
        self._carry("ready", round_context)

    async def decline_round(self, round_context: RoundContext, kind: DeclineKind, *, reason: str) -> None:
        assert (kind, reason) == (DECLINE.kind, DECLINE.reason)
        self._carry("decline", round_context)

    async def complain(self, context: ExchangeContext, *, complaint: bytes) -> None:
        self._carry(complaint.decode(), round_of(context))

    def _carry(self, word: str, round_context: RoundContext) -> None:
        if not self.is_up:
            raise CoordinatorUnavailableError("nobody answers")
        self.heard.append((word, round_context))
        if self.refuses:
            raise CoordinatorRefusedError("it is past it", status="FAILED_PRECONDITION", refusal_code="wrong-phase")


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal", entropy=SeededEntropy("words"))


@pytest.fixture
def words(line: Line, journal: Journal) -> SiteWords:
    return SiteWords(line, journal)  # type: ignore[arg-type] # what a word needs of a client


def write_complaint(journal: Journal, context: ExchangeContext) -> None:
    record = ExchangeRecord(context=context, taken=(), message=b"beta dealt badly", snapshot=b"", is_complaint=True)
    journal.write(record)


async def test_a_word_is_kept_while_the_line_is_down_and_those_after_it_wait_for_it(
    line: Line, words: SiteWords
) -> None:
    line.is_up = False
    await words.say_or_keep(do.AcceptRound(), FIRST)
    line.is_up = True
    # The line is up again, and yet nobody is ready for a round that it has not accepted.
    await words.say_or_keep(do.ReportReady(), FIRST)
    assert line.heard == []
    await words.say_kept()
    assert line.heard == [("accept", FIRST), ("ready", FIRST)]
    await words.say_kept()
    assert len(line.heard) == 2


async def test_a_kept_word_is_about_the_round_in_which_it_was_to_be_said(line: Line, words: SiteWords) -> None:
    line.is_up = False
    await words.say_or_keep(DECLINE, FIRST)
    await words.say_or_keep(do.AcceptRound(), SECOND)
    line.is_up = True
    await words.say_kept()
    assert line.heard == [("decline", FIRST), ("accept", SECOND)]


async def test_a_line_that_breaks_again_loses_no_word_and_repeats_none(line: Line, words: SiteWords) -> None:
    line.is_up = False
    await words.say_or_keep(do.AcceptRound(), FIRST)
    with pytest.raises(CoordinatorUnavailableError):
        await words.say_kept()
    line.is_up = True
    await words.say_kept()
    assert line.heard == [("accept", FIRST)]


async def test_a_word_that_is_refused_is_said(line: Line, words: SiteWords) -> None:
    line.refuses = True
    await words.say_or_keep(do.ReportReady(), FIRST)
    await words.say_kept()
    assert line.heard == [("ready", FIRST)]


async def test_a_complaint_that_was_kept_is_said_when_the_next_round_has_begun_and_closes_its_own_exchange(
    line: Line, words: SiteWords, journal: Journal
) -> None:
    blamed = ExchangeContext(**asdict(FIRST), exchange_index=0, exchange_attempt=0)
    going_on = ExchangeContext(**asdict(SECOND), exchange_index=0, exchange_attempt=0)
    write_complaint(journal, blamed)
    line.is_up = False
    await words.say_or_keep(do.SendComplaint(context=blamed), FIRST)
    assert words.has_unsaid_complaint
    write_complaint(journal, going_on)
    line.is_up = True
    await words.say_kept()
    assert line.heard == [("beta dealt badly", FIRST)]
    assert journal.open_contexts() == (going_on,)
    assert not words.has_unsaid_complaint


async def test_a_complaint_that_comes_too_late_closes_its_exchange_as_well(
    line: Line, words: SiteWords, journal: Journal
) -> None:
    blamed = ExchangeContext(**asdict(FIRST), exchange_index=0, exchange_attempt=0)
    write_complaint(journal, blamed)
    line.refuses = True
    await words.say_or_keep(do.SendComplaint(context=blamed), FIRST)
    assert line.heard == [("beta dealt badly", FIRST)]
    assert journal.open_contexts() == ()
