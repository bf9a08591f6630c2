"""A site whose only way out is a squid that allows CONNECT to one port, with and without Basic credentials.

The site's namespace has no default route and the gateway's address is not on its cable. The run must end with the same
adapter, bit for bit; the proxy sees tunnels to the gateway's port and nothing else; without its credentials the site
reaches nothing, says why, and comes in once it has them.
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
from tests.support.proxies import squid

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.system, pytest.mark.timeout(900)]

CREDENTIALS = "hospital:a secret, with a colon: and a space"


@pytest.fixture
def hospital() -> Iterator[Namespace]:
    with network_namespace() as made:
        yield made


@pytest.fixture
def elsewhere() -> Iterator[Namespace]:
    """Another cable, on whose near end the gateway listens: the hospital has no route to it."""
    with network_namespace() as made:
        yield made


@pytest.mark.parametrize("credentials", [None, CREDENTIALS], ids=["open", "with-credentials"])
def test_site_behind_a_proxy_that_only_allows_connect_run_ends_with_the_same_bytes(
    make_federation: MakeFederation,
    undisturbed: Undisturbed,
    hospital: Namespace,
    elsewhere: Namespace,
    tmp_path: Path,
    credentials: str | None,
) -> None:
    federation = make_federation(sites=SMALL.sites, place=Place(address=elsewhere.outside_address))
    ports = (federation.gateway_port,)
    with squid(
        tmp_path / "squid", connect_ports=ports, credentials=credentials, host=hospital.outside_address
    ) as proxy:
        federation.configure_site("st-mary", coordinator={"proxy": proxy.url})
        federation.define_site("st-mary", prefix=hospital.prefix)
        federation.start()
        run_id = federation.start_run(SMALL)
        if credentials is not None:
            said = federation.wait_until(
                "the site says that the proxy wants credentials",
                lambda: [line for line in federation.processes["st-mary"].log_text().splitlines() if "407" in line],
                timeout_s=60,
            )
            assert "proxy" in said[0]
            federation.processes.stop("st-mary")
            secret = federation.site_dir("st-mary") / "proxy-credentials"
            secret.write_text(f"{credentials}\n")
            secret.chmod(0o600)
            federation.configure_site("st-mary", coordinator={"proxy_credentials_file": secret.name})
            federation.processes.start("st-mary")
        outcome = verified_outcome(federation, run_id, SMALL)
        assert "a secret" not in federation.processes["st-mary"].log_text()
        federation.processes.stop("st-mary")
        requests = federation.wait_until(
            "the proxy has written its log",
            lambda: [line for line in proxy.requests() if f" {hospital.inside_address} " in line],
            timeout_s=30,
        )
        target = f"{elsewhere.outside_address}:{federation.gateway_port}"
        assert all(f" CONNECT {target} " in line for line in requests), requests
    assert outcome == undisturbed(SMALL)
