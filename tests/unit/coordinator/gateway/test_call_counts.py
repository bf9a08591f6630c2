from __future__ import annotations

import asyncio

import grpc
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from coordinator.gateway.admission import Admission, CallRefusedError, IncomingCall
from coordinator.services.refusals import CertificateUnknownError
from fl_protocol.telemetry.coordinator_metrics import COORDINATOR_METRICS
from fl_protocol.telemetry.meter import Meter


@pytest.fixture
def meter() -> Meter:
    return Meter(COORDINATOR_METRICS)


def call(method: str = "Enrol", peer: str = "ipv4:10.0.0.1:5") -> IncomingCall:
    return IncomingCall(method=method, peer=peer, certificate=lambda: None)


def calls_of(meter: Meter) -> dict[tuple[str, str, str], float]:
    return {
        (sample.labels["call"], sample.labels["transport"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(meter.exposition().decode())
        for sample in family.samples
        if sample.name == "wardround_coordinator_calls_total"
    }


async def test_calls_are_counted_by_method_transport_and_status(meter: Meter) -> None:
    admission = Admission(identify=None, meter=meter)
    async with admission.admitted(call(), timeout_s=5):
        assert len(str(structlog.contextvars.get_contextvars()["request_id"])) == 16
    async with admission.admitted(call(peer="http1:10.0.0.1:5"), timeout_s=5):
        pass
    with pytest.raises(CallRefusedError):
        async with admission.admitted(call("Renew"), timeout_s=5):
            raise CertificateUnknownError("nobody")
    with pytest.raises(CallRefusedError):
        async with admission.admitted(call("Renew"), timeout_s=0.01):
            await asyncio.sleep(1)
    with pytest.raises(asyncio.CancelledError):
        async with admission.admitted(call("Renew"), timeout_s=5):
            raise asyncio.CancelledError
    async with admission.admitted(call("SomethingThatAPeerMadeUp"), timeout_s=5):
        pass
    assert calls_of(meter) == {
        ("Enrol", "grpc", "OK"): 1.0,
        ("Enrol", "http1", "OK"): 1.0,
        ("Renew", "grpc", grpc.StatusCode.UNAUTHENTICATED.name): 1.0,
        ("Renew", "grpc", "DEADLINE_EXCEEDED"): 1.0,
        ("Renew", "grpc", "CANCELLED"): 1.0,
        ("unknown", "grpc", "OK"): 1.0,
    }
