"""The coordinator is killed with SIGKILL at exact instructions: in each phase of an exchange, at sum, fold and commit.

It is started again each time. The run must go on to the same adapter, bit for bit, as if nothing had happened: no
accepted message or upload is lost, none is counted twice, no round is committed twice, and there is one release.
"""

from __future__ import annotations

import pytest

from tests.e2e.suites.conftest import MakeFederation, Undisturbed
from tests.e2e.support.crash_points import Arming, CrashPoint
from tests.e2e.support.template import SMALL
from tests.e2e.support.verdicts import verified_outcome

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(900)]

RUN_TX = "coordinator.db.tx:Database.run_tx"
BLOBS = "coordinator.blobs.filesystem:FilesystemBlobStore"
EXCHANGE_MOVES = "coordinator.services.round_status:store_exchange"


def in_transaction_to(state: str) -> CrashPoint:
    """Inside the transaction that moves the exchange there, before it is committed."""
    return CrashPoint(name=f"in-transaction-to-{state}", target=EXCHANGE_MOVES, match={"1.state": state}, when="after")


def after_transaction(name: str, *, nth: int) -> CrashPoint:
    """After a commit, before anybody hears of it."""
    return CrashPoint(name=f"after-{nth}-{name}", target=RUN_TX, match={"0": name}, nth=nth, when="after")


SINK = "coordinator.services.receive_upload:UploadSink"

POINTS = (
    # ADVERTISING
    in_transaction_to("SHARING"),
    # SHARING
    after_transaction("accept-shares", nth=1),
    # COLLECTING
    CrashPoint(name="bytes-on-disk-not-in-row", target=f"{SINK}.take", when="after"),
    CrashPoint(name="upload-is-a-blob-not-in-row", target=f"{SINK}.finish", when="after"),
    # CONFIRMING
    in_transaction_to("REVEALING"),
    # REVEALING
    after_transaction("accept-reveal", nth=1),
    # The sum of round 0: begun and not stored, stored and not in its row, in its row and nobody told.
    CrashPoint(
        name="sum-not-begun",
        target="coordinator.services.aggregate_round:aggregate_round",
        match={"1.round_index": "0"},
    ),
    CrashPoint(
        name="sum-stored-not-in-row",
        target=f"{BLOBS}.put",
        when="after",
        armed_by=Arming(target="fl_protocol.secagg.coordinator_role.unmasking:recover_mask_terms"),
    ),
    after_transaction("complete-sum", nth=1),
    # The fold and the commit of round 1.
    CrashPoint(
        name="state-stored-not-in-row",
        target=f"{BLOBS}.put",
        nth=2,  # the sum is the first
        when="after",
        armed_by=Arming(target="coordinator.services.commit_round:commit_round", match={"1.round_index": "0"}),
    ),
    CrashPoint(
        name="in-transaction-to-COMMITTED",
        target="coordinator.services.commit_round:commit_round",
        match={"1.round_index": "1"},
        when="after",
    ),
    # The last commit, and the release.
    CrashPoint(
        name="committed-and-nobody-told",
        target=RUN_TX,
        match={"0": "advance-run"},
        when="after",
        armed_by=Arming(target="coordinator.services.commit_round:commit_round", match={"1.round_index": "2"}),
    ),
    CrashPoint(
        name="release-made-effect-open", target="coordinator.services.release_adapter:create_release", when="after"
    ),
)


def test_coordinator_killed_at_exact_instructions_run_ends_with_the_same_bytes(
    make_federation: MakeFederation, undisturbed: Undisturbed
) -> None:
    federation = make_federation(sites=SMALL.sites)
    federation.define_coordinator(dies_at=POINTS)
    federation.start()
    outcome = verified_outcome(federation, federation.start_run(SMALL), SMALL)
    assert federation.processes["coordinator"].n_starts == 1 + len(POINTS)
    assert outcome == undisturbed(SMALL)
