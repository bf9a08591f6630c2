"""PostgreSQL is stopped in immediate mode and started again: while sites train, and in the middle of an upload.

Every connection breaks at once. No process may end, nothing that was accepted may be lost or done twice, and the run
goes on by itself to the adapter of an undisturbed run, bit for bit, in the same attempt.
"""

from __future__ import annotations

import time

import pytest

from tests.e2e.suites.conftest import MakeFederation, OnPostgres, Undisturbed
from tests.e2e.support.template import BIG, BIG_UPLOAD_BYTES
from tests.e2e.support.verdicts import verified_outcome
from tests.support.relay import Relay

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.system, pytest.mark.timeout(900)]

DOWN_S = 4.0
DELAY_S = 0.1
"""For each 64 KiB: an upload of four megabytes takes more than six seconds."""


def test_postgresql_down_for_seconds_twice_in_a_round_run_ends_with_the_same_bytes(
    make_federation: MakeFederation, on_postgres: OnPostgres, undisturbed: Undisturbed
) -> None:
    reference = undisturbed(BIG)
    server = on_postgres.server
    federation = make_federation(sites=BIG.sites, source=on_postgres.template, database_url=on_postgres.copy())

    def interrupt() -> None:
        server.stop("immediate")
        try:
            time.sleep(DOWN_S)  # the outage itself
        finally:
            server.start()

    with Relay(federation.gateway_address, delay_s=DELAY_S) as slow:
        federation.configure_site("st-mary", coordinator={"address": slow.address})
        federation.start()
        run_id = federation.start_run(BIG)
        federation.wait_until("round 0 is open", lambda: federation.round(run_id, 0))
        interrupt()
        federation.wait_until("uploads are asked for", lambda: federation.exchange_state(run_id, 0) == "COLLECTING")
        before = slow.bytes_up
        federation.wait_until("an upload is half done", lambda: slow.bytes_up - before > 0.4 * BIG_UPLOAD_BYTES)
        assert federation.participation(run_id, 0, "st-mary") == "KEYED"
        interrupt()
        outcome = verified_outcome(federation, run_id, BIG)
        assert [found["round_attempt"] for found in federation.rounds(run_id)] == [0, 0]
        assert {federation.processes[name].n_starts for name in ("coordinator", *BIG.sites)} == {1}
    assert outcome == reference
