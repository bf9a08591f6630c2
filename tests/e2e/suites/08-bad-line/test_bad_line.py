"""A site behind a line that loses 2 % of its packets, carries 8 Mbit/s, and breaks once in the middle of an upload.

The run must end with the same adapter, bit for bit; the upload goes on where it broke.
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

KBIT_PER_S = 8000
LOSS = 0.02
BREAK_S = 2.0


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """Asked for before the federation, so that the cable is still there when its processes end."""
    with network_namespace() as made:
        yield made


def test_line_with_loss_and_little_room_that_breaks_once_run_ends_with_the_same_bytes(
    namespace: Namespace, make_federation: MakeFederation, undisturbed: Undisturbed
) -> None:
    reference = undisturbed(BIG)
    federation = make_federation(sites=BIG.sites, place=Place(address=namespace.outside_address))
    federation.define_site("st-mary", prefix=namespace.prefix)
    namespace.shape(kbit_per_s=KBIT_PER_S)
    namespace.lose(share=LOSS)
    federation.start()
    run_id = federation.start_run(BIG)
    federation.wait_until("uploads are asked for", lambda: federation.exchange_state(run_id, 0) == "COLLECTING")
    sent_before = namespace.n_bytes_out()
    federation.wait_until(
        "most of the vector is under way", lambda: namespace.n_bytes_out() - sent_before > 0.6 * BIG_UPLOAD_BYTES
    )
    assert federation.participation(run_id, 0, "st-mary") == "KEYED"
    with namespace.resetting():
        time.sleep(BREAK_S)  # the break itself
    federation.wait_until(
        "the upload is whole", lambda: federation.participation(run_id, 0, "st-mary") in {"UPLOADED", "COUNTED"}
    )
    assert namespace.n_bytes_out() - sent_before < 1.45 * BIG_UPLOAD_BYTES
    assert verified_outcome(federation, run_id, BIG) == reference
    assert [found["round_attempt"] for found in federation.rounds(run_id)] == [0, 0]
