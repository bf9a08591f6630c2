"""Trainers are killed with SIGKILL: in the middle of a step, in an evaluation, with a payload written and no result.

The agent starts another trainer for the same job. The round must end within the same attempt, with the same bytes: the
same records in the same order, whether the job was begun anew or taken up from a checkpoint.
"""

from __future__ import annotations

import pytest

from tests.e2e.suites.conftest import MakeFederation, Undisturbed
from tests.e2e.support.crash_points import CrashPoint
from tests.e2e.support.template import SMALL
from tests.e2e.support.verdicts import verified_outcome

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(900)]

REPORT = "site_agent.training.progress:ProgressReporter.report"

POINTS = {
    "st-mary": CrashPoint(name="in-the-third-step", target=REPORT, match={"0": "training", "step": "3"}),
    "charite": CrashPoint(name="in-an-evaluation", target=REPORT, match={"0": "evaluating", "step": "0"}),
    "ucsf": CrashPoint(
        name="payload-written-and-job-open",
        target="site_agent.training.recipe:write_file",
        match={"0.name": "payload.safetensors"},
        when="after",
    ),
}


def test_trainers_killed_at_work_round_ends_in_its_attempt_with_the_same_bytes(
    make_federation: MakeFederation, undisturbed: Undisturbed
) -> None:
    federation = make_federation(sites=SMALL.sites)
    for site, point in POINTS.items():
        federation.define_site(site, dies_at=[point])
    federation.start()
    run_id = federation.start_run(SMALL)
    outcome = verified_outcome(federation, run_id, SMALL)
    assert [found["round_attempt"] for found in federation.rounds(run_id)] == [0, 0, 0]
    assert {federation.processes[site].n_starts for site in POINTS} == {1}
    assert outcome == undisturbed(SMALL)
