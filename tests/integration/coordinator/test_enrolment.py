# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
from __future__ import annotations

from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fl_protocol.pki.certificates import LeafNames, Validity, issue_leaf, make_ca_certificate, new_serial
from fl_protocol.pki.identity import site_id_from_certificate
from fl_protocol.pki.keys import generate_private_key, pem_from_private_key
from fl_protocol.pki.tls import pem_from_certificate, remaining_validity
from fl_protocol.wire.v1 import round_pb2, round_pb2_grpc, run_pb2, run_pb2_grpc

CALL_S = 20.0


def list_pending(site) -> run_pb2.ListPendingResponse:
    with site.channel() as channel:
        return run_pb2_grpc.RunServiceStub(channel).ListPending(run_pb2.ListPendingRequest(), timeout=CALL_S)


def test_enrolment_with_a_good_code_gives_a_certificate_in_the_invited_name(enrolled, admin, coordinator) -> None:
    site = enrolled("st-mary")
    certificate = x509.load_pem_x509_certificate(site.answer.certificate_pem)
    assert site.answer.site_id == "st-mary"
    assert site_id_from_certificate(certificate) == "st-mary"
    assert timedelta(days=89) < remaining_validity(certificate, datetime.now(UTC)) <= timedelta(days=90)
    assert site.answer.gateway_address == coordinator.addresses()["gateway"]
    shown = admin.get("/api/v1/sites/st-mary").json()
    assert shown["state"] == "ENROLLED"
    assert list_pending(site).runs == []
    assert admin.get("/api/v1/sites/st-mary").json()["last_seen_at"] is not None


def test_enrolment_with_an_unknown_code_is_refused_typed(invite, tools) -> None:
    invitation = invite("unknown-code")
    prefix, secret, pin = invitation["code"].split("-")
    wrong = "-".join((prefix, secret[::-1], pin))
    with pytest.raises(grpc.RpcError) as caught:
        tools.enrol(wrong, invitation["enrolment_address"], tools.keys())
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert tools.refusal_of(caught.value).code == "enrolment-code-unknown"


def test_enrolment_again_with_the_same_keys_is_answered_with_other_keys_is_spent(invite, tools) -> None:
    invitation = invite("twice")
    keys = tools.keys()
    first = tools.enrol(invitation["code"], invitation["enrolment_address"], keys)
    again = tools.enrol(invitation["code"], invitation["enrolment_address"], keys)
    assert first.site_id == again.site_id == "twice"
    with pytest.raises(grpc.RpcError) as caught:
        tools.enrol(invitation["code"], invitation["enrolment_address"], tools.keys())
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert tools.refusal_of(caught.value).code == "enrolment-code-spent"


def test_enrolment_with_a_replaced_code_is_spent(invite, tools) -> None:
    old = invite("replaced")
    new = invite("replaced")
    with pytest.raises(grpc.RpcError) as caught:
        tools.enrol(old["code"], old["enrolment_address"], tools.keys())
    assert tools.refusal_of(caught.value).code == "enrolment-code-spent"
    assert tools.enrol(new["code"], new["enrolment_address"], tools.keys()).site_id == "replaced"


def test_enrolment_with_an_expired_code_is_refused(new_coordinator, tools) -> None:
    new_coordinator.environment["WARDROUND_ENROLMENT__CODE_LIFETIME_S"] = "0.000001"
    new_coordinator.init()
    new_coordinator.start()
    with new_coordinator.client(new_coordinator.admin_token()) as admin:
        invitation = admin.post("/api/v1/sites", json={"name": "late"}).json()
    with pytest.raises(grpc.RpcError) as caught:
        tools.enrol(invitation["code"], invitation["enrolment_address"], tools.keys())
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert tools.refusal_of(caught.value).code == "enrolment-code-expired"


def test_enrolment_without_proof_of_possession_is_refused_and_the_code_stays_good(invite, tools) -> None:
    invitation = invite("unproven")
    keys = tools.keys()
    with pytest.raises(grpc.RpcError) as caught:
        tools.enrol(invitation["code"], invitation["enrolment_address"], keys, signature=keys.signer.sign(b"other"))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert tools.refusal_of(caught.value).code == "possession-unproven"
    assert tools.enrol(invitation["code"], invitation["enrolment_address"], keys).site_id == "unproven"


def test_enrolment_with_a_key_of_another_site_is_refused(invite, enrolled, tools) -> None:
    first = enrolled("key-owner")
    invitation = invite("key-thief")
    with pytest.raises(grpc.RpcError) as caught:
        tools.enrol(invitation["code"], invitation["enrolment_address"], tools.keys(signer=first.keys.signer))
    assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert tools.refusal_of(caught.value).code == "signing-key-in-use"


def test_certificate_of_another_authority_does_not_pass_the_handshake(enrolled) -> None:
    site = enrolled("honest")
    now = datetime.now(UTC).replace(microsecond=0)
    validity = Validity(not_before=now - timedelta(minutes=1), not_after=now + timedelta(days=1))
    foreign_key: ec.EllipticCurvePrivateKey = generate_private_key()
    foreign_root = make_ca_certificate(foreign_key, common_name="Foreign", validity=validity, serial=new_serial())
    certificate = issue_leaf(
        foreign_key,
        foreign_root,
        public_key=site.keys.tls.public_key(),
        common_name="honest",
        names=LeafNames(uris=("wardround://site/honest",)),
        validity=validity,
        serial=new_serial(),
    )
    credentials = grpc.ssl_channel_credentials(
        root_certificates=site.answer.root_pem,
        private_key=pem_from_private_key(site.keys.tls),
        certificate_chain=pem_from_certificate(certificate),
    )
    options = (("grpc.ssl_target_name_override", site.answer.gateway_server_name),)
    with grpc.secure_channel(site.answer.gateway_address, credentials, options=options) as channel:
        stub = run_pb2_grpc.RunServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListPending(run_pb2.ListPendingRequest(), timeout=CALL_S)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_call_without_a_certificate_does_not_pass_the_handshake(enrolled) -> None:
    site = enrolled("bare")
    credentials = grpc.ssl_channel_credentials(root_certificates=site.answer.root_pem)
    options = (("grpc.ssl_target_name_override", site.answer.gateway_server_name),)
    with (
        grpc.secure_channel(site.answer.gateway_address, credentials, options=options) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        run_pb2_grpc.RunServiceStub(channel).ListPending(run_pb2.ListPendingRequest(), timeout=CALL_S)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_revoked_site_is_refused_on_its_next_call_of_the_same_connection(enrolled, admin, tools) -> None:
    site = enrolled("to-revoke")
    with site.channel() as channel:
        stub = run_pb2_grpc.RunServiceStub(channel)
        stub.ListPending(run_pb2.ListPendingRequest(), timeout=CALL_S)
        answer = admin.post("/api/v1/sites/to-revoke:revoke", json={"reason": "left the consortium"})
        assert answer.json()["state"] == "REVOKED"
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListPending(run_pb2.ListPendingRequest(), timeout=CALL_S)
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    refusal = tools.refusal_of(caught.value)
    assert refusal.code == "site-not-active"
    assert dict(refusal.facts) == {"site_id": "to-revoke", "state": "REVOKED"}
    assert admin.post("/api/v1/sites", json={"name": "to-revoke"}).json()["code"] == "site-exists"


def test_suspended_site_is_refused_until_it_is_resumed(enrolled, admin, tools) -> None:
    site = enrolled("to-suspend")
    admin.post("/api/v1/sites/to-suspend:suspend", json={"reason": "audit"}).raise_for_status()
    with site.channel() as channel:
        stub = round_pb2_grpc.RoundServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.PollAssignment(round_pb2.PollAssignmentRequest(), timeout=CALL_S)
        assert tools.refusal_of(caught.value).code == "site-not-active"
        admin.post("/api/v1/sites/to-suspend:resume").raise_for_status()
        answer = stub.PollAssignment(round_pb2.PollAssignmentRequest(wait_s=0.0), timeout=CALL_S)
    assert answer.WhichOneof("instruction") == "idle"


def test_message_over_the_bound_of_its_method_is_refused_typed(enrolled, tools) -> None:
    site = enrolled("wordy")
    with site.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        run_pb2_grpc.RunServiceStub(channel).GetRun(run_pb2.GetRunRequest(run_id="x" * 20000), timeout=CALL_S)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert tools.refusal_of(caught.value).code == "message-too-large"


def test_round_that_does_not_exist_is_not_found(enrolled, tools) -> None:
    site = enrolled("lost")
    reference = round_pb2.RoundRef(run_id="run-" + "a" * 26, round_index=0, round_attempt=0)
    with site.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        round_pb2_grpc.RoundServiceStub(channel).AcceptRound(
            round_pb2.AcceptRoundRequest(round=reference), timeout=CALL_S
        )
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert tools.refusal_of(caught.value).code == "not-found"
