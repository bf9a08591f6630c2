"""The root is replaced, in all three steps, while a run goes on: no round is lost, no process is started again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography import x509

from fl_protocol.pki.tls import certificate_fingerprint
from site_agent.enrolment.identity_file import load_identity
from site_agent.folder import SiteFolder
from tests.e2e.suites.conftest import MakeFederation
from tests.e2e.support.federation import Federation
from tests.e2e.support.identity import (
    Answer,
    believe_new_root,
    call_ca,
    certificate_of,
    coordinator_events,
    live_briefly,
    site_events,
)
from tests.e2e.support.template import SITES, SMALL

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(600)]

STUDY = replace(SMALL, name="rotation", rounds=500)
"""More rounds than the rotation lasts: it is cancelled when it has gone on after it."""


def test_root_is_replaced_in_the_middle_of_a_run(make_federation: MakeFederation) -> None:
    federation = make_federation(sites=STUDY.sites)
    live_briefly(federation, certificate_s=8)
    for name in STUDY.sites:
        (federation.site_dir(name) / "renew.wish").touch()
    federation.start()
    # Sites of the template that are not started here: a rotation waits for every site whose certificate lives.
    for name in set(SITES) - set(STUDY.sites):
        federation.client.post(f"/api/v1/sites/{name}:suspend", {"reason": "takes no part"})
    run_id = federation.start_run(STUDY)
    federation.wait_until("a round is committed", lambda: _n_committed(federation, run_id) >= 1)

    def step() -> Answer | None:
        answer = call_ca(federation, "rotate")
        if answer.exit_code == 0:
            return answer
        assert answer.error_code == "rotation-waits", answer.document
        return None

    old = call_ca(federation, "show").document["root_sha256"]
    prepared = federation.wait_until("the next root is prepared", step, timeout_s=60)
    new = prepared.document["root_sha256"]
    believe_new_root(federation)
    assert federation.wait_until("it issues", step, timeout_s=60).document["state"] == "switched"
    n_at_switch = _n_committed(federation, run_id)
    assert federation.wait_until("the last one is retired", step, timeout_s=60).document["state"] == "retired"
    believe_new_root(federation)
    n_at_end = _n_committed(federation, run_id)
    assert n_at_end > n_at_switch, "no round was committed while both roots were believed"
    federation.wait_until("it goes on", lambda: _n_committed(federation, run_id) >= n_at_end + 2, timeout_s=60)
    # No round was lost: each was committed at its first attempt, or is under way.
    rounds = federation.rounds(run_id)
    assert {found["round_attempt"] for found in rounds} == {0}
    assert {found["state"] for found in rounds[:-1]} == {"COMMITTED"}
    federation.client.post(f"/api/v1/runs/{run_id}:cancel")
    assert {federation.processes[name].n_starts for name in ("coordinator", *STUDY.sites)} == {1}
    assert old != new
    kinds = [event["kind"] for event in coordinator_events(federation, "root.prepared", "root.issuing", "root.retired")]
    assert kinds == ["root.prepared", "root.issuing", "root.retired"]
    for name in STUDY.sites:
        federation.processes.stop(name)
        folder = SiteFolder(root=federation.site_dir(name))
        identity = load_identity(folder)
        assert identity.root_sha256 == new
        root = [certificate_fingerprint(certificate) for certificate in _roots(identity.root_pem)]
        assert root == [new]
        certificate_of(folder.root).verify_directly_issued_by(_roots(identity.root_pem)[0])
        assert [event.event.kind for event in site_events(folder.root)].count("roots.changed") == 2
    assert not (federation.coordinator_dir / "keys" / "root.key.pem").exists()


def _n_committed(federation: Federation, run_id: str) -> int:
    return [found["state"] for found in federation.rounds(run_id)].count("COMMITTED")


def _roots(pem: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem)
