"""Sites whose only way out is a squid that allows CONNECT to one port: one without, one with Basic credentials.

Their namespace has no default route and the gateway's address is not on its cable. The run must end with the same
adapter, bit for bit; the proxy sees tunnels to the gateway's port and nothing else; without its
credentials the second site reaches nothing, says why, and comes in once it has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.suites.conftest import MakeFederation, Undisturbed
from tests.e2e.support.federation import Place
from tests.e2e.support.template import SMALL
from tests.e2e.support.verdicts import verified_outcome
from tests.support.namespace import Namespace, network_namespace
from tests.support.proxies import Squid, squid

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.system, pytest.mark.timeout(900)]

CREDENTIALS = "hospital:a secret, with a colon: and a space"


@pytest.fixture
def hospital() -> Iterator[Namespace]:
    """Asked for before the federation, so that the cable is still there when its processes end."""
    with network_namespace() as made:
        yield made


@pytest.fixture
def elsewhere() -> Iterator[Namespace]:
    """Another cable, on whose near end the gateway listens: the hospital has no route to it."""
    with network_namespace() as made:
        yield made


def test_sites_behind_proxies_that_only_allow_connect_run_ends_with_the_same_bytes(
    hospital: Namespace,
    elsewhere: Namespace,
    make_federation: MakeFederation,
    undisturbed: Undisturbed,
    tmp_path: Path,
) -> None:
    federation = make_federation(sites=SMALL.sites, place=Place(address=elsewhere.outside_address))
    ports, host = (federation.gateway_port,), hospital.outside_address
    with (
        squid(tmp_path / "open", connect_ports=ports, host=host) as without,
        squid(tmp_path / "closed", connect_ports=ports, credentials=CREDENTIALS, host=host) as proxy,
    ):
        for site, way in (("charite", without), ("st-mary", proxy)):
            federation.configure_site(site, coordinator={"proxy": way.url})
            federation.define_site(site, prefix=hospital.prefix)
        federation.start()
        run_id = federation.start_run(SMALL)
        said = federation.wait_until(
            "the site says that the proxy wants credentials",
            lambda: [line for line in federation.processes["st-mary"].log_text().splitlines() if "407" in line],
            timeout_s=60,
        )
        assert "proxy" in said[0]
        federation.processes.stop("st-mary")
        secret = federation.site_dir("st-mary") / "proxy-credentials"
        secret.write_text(f"{CREDENTIALS}\n")
        secret.chmod(0o600)
        federation.configure_site("st-mary", coordinator={"proxy_credentials_file": secret.name})
        federation.processes.start("st-mary")
        outcome = verified_outcome(federation, run_id, SMALL)
        assert "a secret" not in federation.processes["st-mary"].log_text()
        target = f"{elsewhere.outside_address}:{federation.gateway_port}"
        for site, way in (("charite", without), ("st-mary", proxy)):
            federation.processes.stop(site)
            requests = federation.wait_until(
                "the proxy has written its log", lambda way=way: requests_from(hospital, way), timeout_s=30
            )
            assert all(f" CONNECT {target} " in line for line in requests), requests
    assert outcome == undisturbed(SMALL)


def requests_from(hospital: Namespace, way: Squid) -> list[str]:
    """What the sites in a namespace asked a proxy for."""
    return [line for line in way.requests() if f" {hospital.inside_address} " in line]
