"""The algorithms that keep something from round to round, in real processes, and agents that die where it is kept.

SCAFFOLD's control variates lie at the sites; an agent is killed before it decides whether the round counted it, another
after it decided and before the state was saved, a third between its offer and READY. The run must end with the same
bytes as the one in which nobody died: a control variate that was lost, or taken twice, would change the next round.
"""

from __future__ import annotations

import pytest

from fl_protocol.folds.public_state import PublicState
from tests.e2e.suites.conftest import MakeFederation, Undisturbed
from tests.e2e.support.crash_points import CrashPoint
from tests.e2e.support.template import Study
from tests.e2e.support.verdicts import verified_outcome
from wardround.documents import documents_of

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(900)]

SCAFFOLD = Study(
    name="scaffold",
    rounds=3,
    changes=(
        ("local.rule", "scaffold"),
        ("local.optimizer", "sgd"),
        ("aggregation.server.optimizer", "fedavgm"),
    ),
)
FEDMED = Study(
    name="fedmed",
    rounds=3,
    changes=(
        ("local.rule", "fedprox"),
        ("local.schedule", "cosine-by-round"),
        ("aggregation.algorithm", "fedmed"),
        # No loss falls by 60 nats: the gate is open from the third round on.
        ("aggregation.attention.stall", 60.0),
        ("aggregation.server.optimizer", "fedadam"),
    ),
)
DECIDE = "site_agent.state.private_states:PrivateStates.decide"
OFFER = "site_agent.state.private_states:PrivateStates.offer"
POINTS = {
    "st-mary": CrashPoint(name="before-it-decides", target=DECIDE),
    "charite": CrashPoint(name="decided-and-not-saved", target=DECIDE, when="after", nth=2),
    "ucsf": CrashPoint(name="offered-and-not-ready", target=OFFER, when="after", nth=2),
}


def test_agents_killed_where_the_control_variate_is_kept_end_with_the_same_bytes(
    make_federation: MakeFederation, undisturbed: Undisturbed
) -> None:
    federation = make_federation(sites=SCAFFOLD.sites)
    for site, point in POINTS.items():
        federation.define_site(site, dies_at=[point])
    federation.start()
    run_id = federation.start_run(SCAFFOLD)
    outcome = verified_outcome(federation, run_id, SCAFFOLD)
    assert [found["round_attempt"] for found in federation.rounds(run_id)] == [0, 0, 0, 0]
    assert outcome == undisturbed(SCAFFOLD)
    federation.wait_until(
        "nothing private is left of a run that is over",
        lambda: (
            not any(
                path.is_file() for site in SCAFFOLD.sites for path in federation.site_dir(site).glob("private/**/*")
            )
        ),
        timeout_s=60,
    )


def test_fedmed_under_fedadam_runs_from_enrolment_to_a_release(make_federation: MakeFederation) -> None:
    federation = make_federation(sites=FEDMED.sites)
    federation.start()
    run_id = federation.start_run(FEDMED)
    verified_outcome(federation, run_id, FEDMED)
    (file,) = (federation.site_dir("ucsf") / "states" / run_id).glob("v3.safetensors")
    server = PublicState.from_bytes(file.read_bytes()).server
    assert {name.split(".")[0] for name in server} == {"first_moment", "second_moment", "mediation"}
    assert server["mediation.is_attentive"].tolist() == [1]
    rounds = documents_of(federation.client.get(f"/api/v1/runs/{run_id}/metrics"), "rounds")
    assert [found["metrics"].get("attentive") for found in rounds] == [0.0, 0.0, 1.0, None]
    assert [found["metrics"].get("selected_sites") for found in rounds] == [3.0, 3.0, 3.0, None]
