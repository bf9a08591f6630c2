"""The calls by which a site keeps its identity alive, typed. Knows no key, no file and no rule of when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import grpc.aio

from fl_protocol.signing.signed import SignedBody
from fl_protocol.wire.convert import proto_from_signed, signed_from_proto
from fl_protocol.wire.v1 import enrolment_pb2, enrolment_pb2_grpc
from site_agent.link.channel import CallChannel
from site_agent.link.refusals import typed_errors

_CALL_TIMEOUT_S = 20.0
_SHORTEST_CHECK_IN_S = 1.0
_LONGEST_CHECK_IN_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalRequest:
    """What is asked. ``challenge`` and its signature only where no certificate lives that would be proof."""

    csr_der: bytes
    statement: SignedBody
    agent_version: str
    trusted_roots_version: int = 0
    challenge: SignedBody | None = None
    challenge_signature: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteNews:
    """What the coordinator says each time that it hears of this site; nothing of it is believed yet."""

    trusted_roots: SignedBody
    enrolment_address: str
    counter_floor: int
    check_in_after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalAnswer:
    """A renewal's answer; nothing of it is believed yet."""

    site_id: str
    certificate_pem: bytes
    news: SiteNews


class IdentityCalls:
    """Over a channel of either transport. Raises the errors of ``CoordinatorClient``, and nothing else."""

    def __init__(self, channel: grpc.aio.Channel | CallChannel) -> None:
        """Take the channel; the caller closes it."""
        self._stub = enrolment_pb2_grpc.EnrolmentServiceStub(cast("grpc.aio.Channel", channel))

    async def renew(self, request: RenewalRequest) -> RenewalAnswer:
        """Ask for the next certificate, by the one that the channel shows."""
        with typed_errors("Renew"):
            return renewal_answer_from_proto(
                await self._stub.Renew(proto_from_renewal(request), timeout=_CALL_TIMEOUT_S)
            )

    async def check_in(self, statement: SignedBody, *, agent_version: str, trusted_roots_version: int) -> SiteNews:
        """Say that this process is there."""
        request = enrolment_pb2.CheckInRequest(
            statement=proto_from_signed(statement),
            agent_version=agent_version,
            trusted_roots_version=trusted_roots_version,
        )
        with typed_errors("CheckIn"):
            return _news_from_proto(await self._stub.CheckIn(request, timeout=_CALL_TIMEOUT_S))


def proto_from_renewal(request: RenewalRequest) -> enrolment_pb2.RenewRequest:
    """The request on the wire."""
    message = enrolment_pb2.RenewRequest(
        tls_csr_der=request.csr_der,
        statement=proto_from_signed(request.statement),
        challenge_signature=request.challenge_signature,
        agent_version=request.agent_version,
        trusted_roots_version=request.trusted_roots_version,
    )
    if request.challenge is not None:
        message.challenge.CopyFrom(proto_from_signed(request.challenge))
    return message


def renewal_answer_from_proto(proto: enrolment_pb2.RenewResponse) -> RenewalAnswer:
    """The answer off the wire."""
    return RenewalAnswer(site_id=proto.site_id, certificate_pem=proto.certificate_pem, news=_news_from_proto(proto))


def _news_from_proto(proto: enrolment_pb2.RenewResponse | enrolment_pb2.CheckInResponse) -> SiteNews:
    after_s = proto.check_in_after_s
    # A coordinator neither silences a site nor makes it call without a pause; a NaN compares false with everything.
    is_usable = math.isfinite(after_s) and after_s > 0
    return SiteNews(
        trusted_roots=signed_from_proto(proto.trusted_roots),
        enrolment_address=proto.enrolment_address[:300],
        counter_floor=proto.counter_floor,
        check_in_after_s=min(max(after_s, _SHORTEST_CHECK_IN_S), _LONGEST_CHECK_IN_S) if is_usable else 3600.0,
    )
