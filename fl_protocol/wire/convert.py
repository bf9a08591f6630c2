"""Protobuf on one side, our own values on the other: the only place where the two meet.

Messages of SA1 cross as exact bytes and need no translation. What is translated is checked here, once, so that behind
this module a name is a name and a number is in range.
"""

from __future__ import annotations

from fl_protocol.errors import Fact, ProtocolError
from fl_protocol.ids import RunId, run_id_from_text
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext, RoundContext
from fl_protocol.wire.v1 import errors_pb2, round_pb2, secagg_pb2, signed_pb2


class WireMessageInvalidError(ProtocolError):
    """A message lacks a part that it must have."""

    code = "wire-message-invalid"


def proto_from_signed(signed: SignedBody) -> signed_pb2.SignedBody:
    """A signed body for the wire."""
    return signed_pb2.SignedBody(body=signed.body, signature=signed.signature)


def signed_from_proto(proto: signed_pb2.SignedBody) -> SignedBody:
    """A signed body from the wire; not verified yet.

    Raises:
        WireMessageInvalidError: the body or the signature is empty.
    """
    if not proto.body or not proto.signature:
        raise WireMessageInvalidError("a signed body has a body and a signature")
    return SignedBody(body=proto.body, signature=proto.signature)


def proto_from_exchange(context: ExchangeContext) -> secagg_pb2.ExchangeRef:
    """Name an exchange on the wire."""
    return secagg_pb2.ExchangeRef(
        run_id=context.run_id,
        round_index=context.round_index,
        round_attempt=context.round_attempt,
        exchange_index=context.exchange_index,
        exchange_attempt=context.exchange_attempt,
    )


def exchange_from_proto(proto: secagg_pb2.ExchangeRef) -> ExchangeContext:
    """The exchange that a message names.

    Raises:
        IdentifierInvalidError: the run's identifier is not one.
    """
    return ExchangeContext(
        run_id=run_id_from_text(proto.run_id),
        round_index=proto.round_index,
        round_attempt=proto.round_attempt,
        exchange_index=proto.exchange_index,
        exchange_attempt=proto.exchange_attempt,
    )


def proto_from_round(context: RoundContext) -> round_pb2.RoundRef:
    """Name a round on the wire."""
    return round_pb2.RoundRef(
        run_id=context.run_id, round_index=context.round_index, round_attempt=context.round_attempt
    )


def round_from_proto(proto: round_pb2.RoundRef) -> RoundContext:
    """The round that a message names.

    Raises:
        IdentifierInvalidError: the run's identifier is not one.
    """
    return RoundContext(
        run_id=run_id_from_text(proto.run_id), round_index=proto.round_index, round_attempt=proto.round_attempt
    )


def run_id_from_proto(text: str) -> RunId:
    """The run that a message names. Raises IdentifierInvalidError."""
    return run_id_from_text(text)


def proto_from_refusal(code: str, message: str, facts: dict[str, Fact]) -> errors_pb2.Refusal:
    """A typed refusal for a call's trailing metadata."""
    return errors_pb2.Refusal(
        code=code, message=message, facts={key: str(value) for key, value in facts.items() if value is not None}
    )
