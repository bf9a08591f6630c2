"""EnrolmentService: the one call that a site makes without a certificate."""

from __future__ import annotations

import asyncio

from coordinator.gateway.interceptors import Context
from coordinator.services.enrol_site import EnrolmentRequest, enrol_site
from coordinator.services.resources import Resources
from fl_protocol.wire.v1 import enrolment_pb2, enrolment_pb2_grpc


class EnrolmentServicer(enrolment_pb2_grpc.EnrolmentServiceServicer):
    """Translates one message into one service call."""

    def __init__(self, resources: Resources) -> None:
        """Take what the service works with."""
        self._resources = resources

    async def Enrol(  # noqa: N802 # the method's name in the proto
        self, request: enrolment_pb2.EnrolRequest, context: Context
    ) -> enrolment_pb2.EnrolResponse:
        """Enrol a site, or raise a typed refusal."""
        del context
        enrolled = await asyncio.to_thread(
            enrol_site,
            self._resources,
            EnrolmentRequest(
                code_secret=request.code_secret,
                tls_csr_der=request.tls_csr_der,
                signing_spki_der=request.signing_spki_der,
                possession_signature=request.possession_signature,
                agent_version=request.agent_version,
            ),
        )
        return enrolment_pb2.EnrolResponse(
            site_id=enrolled.site_id,
            certificate_pem=enrolled.certificate_pem,
            root_pem=enrolled.root_pem,
            gateway_address=enrolled.gateway_address,
            gateway_server_name=enrolled.gateway_server_name,
            coordinator_signing_spki_der=enrolled.coordinator_signing_spki_der,
            fallback_address=enrolled.fallback_address,
        )
