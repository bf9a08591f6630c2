"""Site agents are killed with SIGKILL at exact instructions: between a statement's journal, its flag and its sending.

Each is started again. It must take up its round where the journal left it: the same bytes are sent again or nothing had
left, no payload is masked twice for two sums, its upload counts once, and the adapter is that of an undisturbed run.
"""

from __future__ import annotations

import pytest

from tests.e2e.suites.conftest import MakeFederation, Undisturbed
from tests.e2e.support.crash_points import CrashPoint
from tests.e2e.support.template import SMALL
from tests.e2e.support.verdicts import verified_outcome

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(900)]

JOURNAL = "site_agent.state.journal:Journal"
BOOK = "site_agent.state.round_book:RoundBook"


def journalled(step: str, *, round_index: int) -> CrashPoint:
    """The statement is on the disk; no flag is set and nothing has left."""
    return CrashPoint(
        name=f"{step}-journalled-in-round-{round_index}",
        target=f"{JOURNAL}.write",
        match={"0.last_step": step, "0.context.round_index": str(round_index)},
        when="after",
    )


ST_MARY = (
    CrashPoint(
        name="in-training",
        target="site_agent.supervision.progress:ProgressRelay.note",
        match={"0.state": "training", "0.step": "2"},
    ),
    journalled("M1", round_index=1),
    journalled("M3", round_index=2),
)
CHARITE = (
    journalled("M7", round_index=0),
    CrashPoint(
        name="uploaded-and-receipt-lost",
        target="site_agent.link.uploader:Uploader._send_from",
        match={"0.context.round_index": "1"},
        when="after",
    ),
)
UCSF = (
    CrashPoint(
        name="flag-of-M9-set-and-nothing-sent",
        target=f"{BOOK}.ensure_revealed",
        match={"0.context.round_index": "0"},
        when="after",
    ),
    CrashPoint(
        name="masked-and-not-recorded", target=f"{JOURNAL}.write_spool", match={"0.round_index": "1"}, when="after"
    ),
    CrashPoint(name="folded-and-not-recorded", target=f"{BOOK}.record_settled", match={"0.round_index": "2"}),
)


def test_sites_killed_at_exact_instructions_run_ends_with_the_same_bytes(
    make_federation: MakeFederation, undisturbed: Undisturbed
) -> None:
    federation = make_federation(sites=SMALL.sites)
    points = {"st-mary": ST_MARY, "charite": CHARITE, "ucsf": UCSF}
    for site, dies_at in points.items():
        federation.define_site(site, dies_at=dies_at)
    federation.start()
    outcome = verified_outcome(federation, federation.start_run(SMALL), SMALL)
    for site, dies_at in points.items():
        assert federation.processes[site].n_starts == 1 + len(dies_at)
    assert outcome == undisturbed(SMALL)
