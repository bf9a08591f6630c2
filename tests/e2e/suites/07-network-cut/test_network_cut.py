"""Two sites lose their network for a minute at once: one in the middle of its upload, one while it waits for word.

The coordinator must wait (late is not dead) and both must go on by themselves when the link is back: the upload from
where it stood, not from its beginning; the round in the same attempt and exchange; the adapter bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.e2e.suites.conftest import MakeFederation, Undisturbed
from tests.e2e.support.federation import Place
from tests.e2e.support.template import BIG, BIG_UPLOAD_BYTES
from tests.e2e.support.verdicts import verified_outcome
from tests.support.namespace import Namespace, network_namespace

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.system, pytest.mark.timeout(900)]

CUT_S = 60.0
KBIT_PER_S = 2000


@pytest.fixture
def uploading() -> Iterator[Namespace]:
    """Asked for before the federation, so that the cable is still there when its processes end."""
    with network_namespace() as made:
        yield made


@pytest.fixture
def polling() -> Iterator[Namespace]:
    with network_namespace() as made:
        yield made


def test_link_down_for_a_minute_in_an_upload_and_in_a_poll_run_goes_on(
    uploading: Namespace, polling: Namespace, make_federation: MakeFederation, undisturbed: Undisturbed
) -> None:
    reference = undisturbed(BIG)
    federation = make_federation(sites=BIG.sites, place=Place(address=uploading.outside_address))
    polling.route_to(uploading.outside_address)
    federation.define_site("st-mary", prefix=uploading.prefix)
    federation.define_site("charite", prefix=polling.prefix)
    federation.start()
    run_id = federation.start_run(BIG)
    federation.wait_until("st-mary is in the exchange", lambda: federation.exchange_state(run_id, 0))
    uploading.shape(kbit_per_s=KBIT_PER_S)
    sent_before = uploading.n_bytes_out()
    federation.wait_until(
        "the others have uploaded, and st-mary most of its vector",
        lambda: (
            federation.participation(run_id, 0, "charite") == "UPLOADED"
            and uploading.n_bytes_out() - sent_before > 0.6 * BIG_UPLOAD_BYTES
        ),
    )
    assert federation.participation(run_id, 0, "st-mary") == "KEYED"
    began = time.monotonic()
    uploading.cut()
    polling.cut()
    federation.wait_until("the minute is over", lambda: time.monotonic() - began > CUT_S, timeout_s=2 * CUT_S)
    assert federation.exchange_state(run_id, 0) == "COLLECTING"
    uploading.join()
    polling.join()
    polling.route_to(uploading.outside_address)
    federation.wait_until(
        "st-mary's upload is whole", lambda: federation.participation(run_id, 0, "st-mary") in {"UPLOADED", "COUNTED"}
    )
    # Begun again it would be 1.6 times the vector and more.
    assert uploading.n_bytes_out() - sent_before < 1.4 * BIG_UPLOAD_BYTES
    uploading.unshape()
    assert verified_outcome(federation, run_id, BIG) == reference
    assert [found["round_attempt"] for found in federation.rounds(run_id)] == [0, 0]
    assert {federation.processes[site].n_starts for site in BIG.sites} == {1}
