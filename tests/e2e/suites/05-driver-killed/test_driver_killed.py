"""Two drivers, two gateways and an api, processes of their own on one PostgreSQL; the leader and a gateway are killed.

The gateway dies in the middle of an upload and stays dead: the site goes on with the other one, from where it stood.
The driver that holds the run's lease dies with the sum stored and not yet in its row, and stays dead: the other one
takes over when the lease has run out. The adapter is that of an undisturbed run in one process on SQLite, bit for bit.
"""

from __future__ import annotations

import pytest

from tests.e2e.suites.conftest import MakeFederation, OnPostgres, Undisturbed
from tests.e2e.support.crash_points import Arming, CrashPoint
from tests.e2e.support.federation import free_port
from tests.e2e.support.template import BIG
from tests.e2e.support.verdicts import verified_outcome
from tests.support.relay import Relay

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.system, pytest.mark.timeout(900)]

IN_UPLOAD = CrashPoint(
    name="second-chunk-on-disk", target="coordinator.services.receive_upload:UploadSink.take", nth=2, when="after"
)
AT_SUM = CrashPoint(
    name="sum-stored-not-in-row",
    target="coordinator.blobs.filesystem:FilesystemBlobStore.put",
    when="after",
    armed_by=Arming(target="fl_protocol.secagg.coordinator_role.unmasking:recover_mask_terms"),
)


def test_leader_and_gateway_killed_the_others_go_on_to_the_same_bytes(
    make_federation: MakeFederation, on_postgres: OnPostgres, undisturbed: Undisturbed
) -> None:
    reference = undisturbed(BIG)
    federation = make_federation(sites=BIG.sites, source=on_postgres.template, database_url=on_postgres.copy())
    second = free_port("127.0.0.1")
    with Relay(federation.gateway_address) as balancer:
        federation.configure_coordinator(
            gateway={"advertise": balancer.address}, enrolment={"port": 0, "advertise": "127.0.0.1:9"}
        )
        for site in BIG.sites:
            federation.configure_site(site, coordinator={"address": balancer.address})
        federation.define_coordinator(name="api", roles="api")
        federation.define_coordinator(name="gateway-1", roles="gateway", dies_at=[IN_UPLOAD], comes_back=False)
        federation.define_coordinator(
            name="gateway-2", roles="gateway", WARDROUND_GATEWAY__PORT=str(second), WARDROUND_GATEWAY__HTTP1_PORT="0"
        )
        drivers = ("driver-1", "driver-2")
        for name in drivers:
            federation.define_coordinator(name=name, roles="driver", dies_at=[AT_SUM], comes_back=False)
        federation.start_coordinator("api", "gateway-1", "gateway-2", *drivers)
        for site in BIG.sites:
            federation.processes.start(site)
        run_id = federation.start_run(BIG)

        federation.wait_until("a gateway died", lambda: not federation.processes.is_running("gateway-1"))
        balancer.target = f"127.0.0.1:{second}"
        federation.wait_until(
            "the leader died", lambda: not all(federation.processes.is_running(name) for name in drivers)
        )
        outcome = verified_outcome(federation, run_id, BIG)
        assert [federation.processes.is_running(name) for name in drivers].count(True) == 1
        assert [found["round_attempt"] for found in federation.rounds(run_id)] == [0, 0]
        assert {federation.processes[site].n_starts for site in BIG.sites} == {1}
    assert outcome == reference
