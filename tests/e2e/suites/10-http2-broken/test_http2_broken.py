"""A middlebox resets every connection of one site whose ALPN offers HTTP/2, and is mended in the middle of the run.

The site must find that out by itself, say so in its log, and take part over HTTP/1.1 under the same mutual TLS; when
the middlebox is mended it goes back to gRPC and says that too. The adapter is that of an undisturbed run, bit for bit.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.suites.conftest import MakeFederation, Undisturbed
from tests.e2e.support import impatient_site
from tests.e2e.support.template import SMALL
from tests.e2e.support.verdicts import verified_outcome
from tests.support.relay import Http2Breaker

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(900)]

MOST_OF_A_HANDSHAKE_BYTES = 4096
"""What a site says after its ClientHello: its certificate, and proof of its key. One upload here is 12 kB and more."""


def test_site_behind_a_breaker_of_http2_falls_back_and_returns_when_it_is_mended(
    make_federation: MakeFederation, undisturbed: Undisturbed
) -> None:
    federation = make_federation(sites=SMALL.sites)
    log = federation.processes["st-mary"].log_text
    with Http2Breaker(federation.gateway_address) as breaker, Http2Breaker(federation.http1_address) as beside:
        federation.configure_site(
            "st-mary", coordinator={"address": breaker.address, "fallback_address": beside.address}
        )
        federation.define_site("st-mary", program=str(Path(impatient_site.__file__)))
        federation.start()
        run_id = federation.start_run(SMALL)
        federation.wait_until("round 0 is committed", lambda: federation.counted(run_id, 0))
        assert federation.counted(run_id, 0) == set(SMALL.sites)
        changes = [line for line in log().splitlines() if "transport_changed" in line]
        assert len(changes) == 1
        assert "to=http/1.1" in changes[0]
        # Every call offered h2 and was reset. What did not offer it is the site's look whether only h2 is broken: a
        # handshake after each reset one at most, and no call over it.
        looks = [offered for offered in breaker.offers if "h2" not in offered]
        assert set(looks) == {("http/1.1",)}
        assert 2 * len(looks) <= len(breaker.offers)
        assert breaker.bytes_up < MOST_OF_A_HANDSHAKE_BYTES * len(looks)
        assert set(beside.offers) == {("http/1.1",)}

        breaker.is_breaking = False
        outcome = verified_outcome(federation, run_id, SMALL)
        federation.wait_until("the site is back with gRPC", lambda: "to=grpc" in log(), timeout_s=60)
    assert outcome == undisturbed(SMALL)
