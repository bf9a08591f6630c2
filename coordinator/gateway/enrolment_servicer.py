"""EnrolmentService, as each of the two kinds of listener serves it: without a certificate, and with one that lives."""

from __future__ import annotations

import asyncio

from coordinator.errors import InvalidMessageError
from coordinator.gateway.admission import calling_site
from coordinator.gateway.interceptors import Context
from coordinator.services.enrol_site import EnrolmentRequest, enrol_site
from coordinator.services.renew_certificate import (
    RenewalRequest,
    Renewed,
    challenge_renewal,
    check_in,
    renew_by_signing_key,
    renew_certificate,
)
from coordinator.services.resources import Resources
from fl_protocol.wire.convert import proto_from_signed, signed_from_proto
from fl_protocol.wire.v1 import enrolment_pb2, enrolment_pb2_grpc


class WrongListenerError(InvalidMessageError):
    """This call belongs to the other listener for sites."""

    code = "wrong-listener"


class EnrolmentServicer(enrolment_pb2_grpc.EnrolmentServiceServicer):
    """The enrolment listener: for sites that hold a code, or a signing key and no certificate that lives."""

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
                renews=request.renews,
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

    async def ChallengeRenewal(  # noqa: N802 # the method's name in the proto
        self, request: enrolment_pb2.ChallengeRenewalRequest, context: Context
    ) -> enrolment_pb2.ChallengeRenewalResponse:
        """Ask a site to prove its signing key."""
        del context
        challenge = await asyncio.to_thread(
            challenge_renewal,
            self._resources,
            client_nonce=request.client_nonce,
            signing_key_sha256=request.signing_key_sha256,
        )
        return enrolment_pb2.ChallengeRenewalResponse(challenge=proto_from_signed(challenge))

    async def Renew(  # noqa: N802 # the method's name in the proto
        self, request: enrolment_pb2.RenewRequest, context: Context
    ) -> enrolment_pb2.RenewResponse:
        """Renew by the signing key, or raise a typed refusal."""
        del context
        renewed = await asyncio.to_thread(
            renew_by_signing_key,
            self._resources,
            _renewal_request(request),
            challenge=signed_from_proto(request.challenge),
            signature=request.challenge_signature,
        )
        return _renew_response(renewed)

    async def CheckIn(  # noqa: N802 # the method's name in the proto
        self, request: enrolment_pb2.CheckInRequest, context: Context
    ) -> enrolment_pb2.CheckInResponse:
        """Refuse: whoever checks in has a certificate."""
        del request, context
        raise WrongListenerError("a site checks in at the gateway")


class IdentityServicer(enrolment_pb2_grpc.EnrolmentServiceServicer):
    """The gateway: for sites whose certificate lives."""

    def __init__(self, resources: Resources) -> None:
        """Take what the service works with."""
        self._resources = resources

    async def Enrol(  # noqa: N802 # the method's name in the proto
        self, request: enrolment_pb2.EnrolRequest, context: Context
    ) -> enrolment_pb2.EnrolResponse:
        """Refuse: whoever is here has enrolled."""
        del request, context
        raise WrongListenerError("a site enrols at the enrolment listener")

    async def ChallengeRenewal(  # noqa: N802 # the method's name in the proto
        self, request: enrolment_pb2.ChallengeRenewalRequest, context: Context
    ) -> enrolment_pb2.ChallengeRenewalResponse:
        """Refuse: a certificate that lives is proof enough."""
        del request, context
        raise WrongListenerError(
            "with a certificate that lives a site renews at once; challenges are for those without"
        )

    async def Renew(  # noqa: N802 # the method's name in the proto
        self, request: enrolment_pb2.RenewRequest, context: Context
    ) -> enrolment_pb2.RenewResponse:
        """Renew by the certificate of this very call, or raise a typed refusal."""
        del context
        renewed = await asyncio.to_thread(renew_certificate, self._resources, calling_site(), _renewal_request(request))
        return _renew_response(renewed)

    async def CheckIn(  # noqa: N802 # the method's name in the proto
        self, request: enrolment_pb2.CheckInRequest, context: Context
    ) -> enrolment_pb2.CheckInResponse:
        """Hear that a process of the site is there, or raise a typed refusal."""
        del context
        news = await asyncio.to_thread(
            check_in,
            self._resources,
            calling_site(),
            signed_from_proto(request.statement),
            agent_version=request.agent_version,
            trusted_roots_version=request.trusted_roots_version,
        )
        return enrolment_pb2.CheckInResponse(
            trusted_roots=proto_from_signed(news.trusted_roots),
            enrolment_address=news.enrolment_address,
            counter_floor=news.counter_floor,
            check_in_after_s=news.check_in_after_s,
        )


def _renewal_request(request: enrolment_pb2.RenewRequest) -> RenewalRequest:
    return RenewalRequest(
        tls_csr_der=request.tls_csr_der,
        statement=signed_from_proto(request.statement),
        agent_version=request.agent_version,
        trusted_roots_version=request.trusted_roots_version,
    )


def _renew_response(renewed: Renewed) -> enrolment_pb2.RenewResponse:
    return enrolment_pb2.RenewResponse(
        site_id=renewed.site_id,
        certificate_pem=renewed.certificate_pem,
        trusted_roots=proto_from_signed(renewed.news.trusted_roots),
        enrolment_address=renewed.news.enrolment_address,
        counter_floor=renewed.news.counter_floor,
        check_in_after_s=renewed.news.check_in_after_s,
    )
