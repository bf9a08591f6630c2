"""What a site is told to do, as the messages that say it."""

from __future__ import annotations

from typing import assert_never

from coordinator.rounds.instructions import RoundRef
from coordinator.services import site_instructions as told
from coordinator.services.site_instructions import Instruction
from fl_protocol.spec.context import RoundContext
from fl_protocol.wire.convert import proto_from_exchange, proto_from_round, proto_from_signed
from fl_protocol.wire.v1 import round_pb2


def proto_from_instruction(instruction: Instruction) -> round_pb2.PollAssignmentResponse:
    """The answer to a poll."""
    answer = round_pb2.PollAssignmentResponse
    match instruction:
        case told.Idle():
            return answer(idle=round_pb2.Idle(retry_after_s=instruction.retry_after_s))
        case told.TrainRound():
            return answer(
                train=round_pb2.TrainRound(
                    round=_proto_from_ref(instruction.round), manifest=proto_from_signed(instruction.manifest)
                )
            )
        case told.AbandonRound():
            return answer(
                abandon=round_pb2.AbandonRound(round=_proto_from_ref(instruction.round), reason=instruction.reason)
            )
        case told.PublishedResult():
            return answer(result=proto_from_result(instruction))
        case _:
            return _proto_from_relay(instruction)


def _proto_from_relay(
    instruction: told.OpenExchange | told.RelayKeys | told.RelayShares | told.RelaySurvivors | told.RelayConfirmations,
) -> round_pb2.PollAssignmentResponse:
    answer = round_pb2.PollAssignmentResponse
    exchange = proto_from_exchange(instruction.exchange)
    match instruction:
        case told.OpenExchange():
            return answer(open_exchange=round_pb2.OpenExchange(exchange=exchange))
        case told.RelayKeys():
            return answer(keys=round_pb2.RelayKeys(exchange=exchange, keys=instruction.m2))
        case told.RelayShares():
            return answer(shares=round_pb2.RelayShares(exchange=exchange, shares=instruction.m4))
        case told.RelaySurvivors():
            return answer(survivors=round_pb2.RelaySurvivors(exchange=exchange, survivors=instruction.m6))
        case told.RelayConfirmations():
            return answer(confirmations=round_pb2.RelayConfirmations(exchange=exchange, confirmations=instruction.m8))
        case _:
            assert_never(instruction)


def proto_from_result(result: told.PublishedResult) -> round_pb2.PublishedResult:
    """M10, and where its sum is."""
    return round_pb2.PublishedResult(
        exchange=proto_from_exchange(result.exchange),
        result=result.m10,
        sum_blob_sha256=result.sum_blob_sha256,
        sum_bytes=result.sum_bytes,
    )


def _proto_from_ref(ref: RoundRef) -> round_pb2.RoundRef:
    return proto_from_round(
        RoundContext(run_id=ref.run_id, round_index=ref.round_index, round_attempt=ref.round_attempt)
    )
