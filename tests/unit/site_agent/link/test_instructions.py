"""Every instruction is read as the value it stands for; what is unknown or malformed is a typed error."""

from __future__ import annotations

import pytest

from fl_protocol.ids import IdentifierInvalidError
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext, RoundContext
from fl_protocol.testing.federation import RUN_ID
from fl_protocol.wire.convert import WireMessageInvalidError, proto_from_exchange, proto_from_round
from fl_protocol.wire.v1 import round_pb2, signed_pb2
from site_agent.link import instructions as asked
from site_agent.link.instructions import Instruction, InstructionUnknownError, instruction_from_proto

ROUND = RoundContext(run_id=RUN_ID, round_index=1, round_attempt=2)
EXCHANGE = ExchangeContext(run_id=RUN_ID, round_index=1, round_attempt=2, exchange_index=0, exchange_attempt=3)
REF = proto_from_exchange(EXCHANGE)
Answer = round_pb2.PollAssignmentResponse


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(idle=round_pb2.Idle(retry_after_s=2.5)), asked.Idle(retry_after_s=2.5)),
        (Answer(idle=round_pb2.Idle(retry_after_s=float("nan"))), asked.Idle(retry_after_s=0.0)),
        (Answer(idle=round_pb2.Idle(retry_after_s=float("inf"))), asked.Idle(retry_after_s=0.0)),
        (
            Answer(
                train=round_pb2.TrainRound(
                    round=proto_from_round(ROUND), manifest=signed_pb2.SignedBody(body=b"m0", signature=b"s")
                )
            ),
            asked.TrainRound(round=ROUND, manifest=SignedBody(body=b"m0", signature=b"s")),
        ),
        (Answer(open_exchange=round_pb2.OpenExchange(exchange=REF)), asked.OpenExchange(exchange=EXCHANGE)),
        (
            Answer(keys=round_pb2.RelayKeys(exchange=REF, keys=b"m2")),
            asked.RelayKeys(exchange=EXCHANGE, message=b"m2"),
        ),
        (
            Answer(shares=round_pb2.RelayShares(exchange=REF, shares=b"m4")),
            asked.RelayShares(exchange=EXCHANGE, message=b"m4"),
        ),
        (
            Answer(survivors=round_pb2.RelaySurvivors(exchange=REF, survivors=b"m6")),
            asked.RelaySurvivors(exchange=EXCHANGE, message=b"m6"),
        ),
        (
            Answer(confirmations=round_pb2.RelayConfirmations(exchange=REF, confirmations=b"m8")),
            asked.RelayConfirmations(exchange=EXCHANGE, message=b"m8"),
        ),
        (
            Answer(
                result=round_pb2.PublishedResult(exchange=REF, result=b"m10", sum_blob_sha256="ab" * 32, sum_bytes=7)
            ),
            asked.PublishedResult(exchange=EXCHANGE, message=b"m10", sum_blob_sha256="ab" * 32, sum_bytes=7),
        ),
        (
            Answer(abandon=round_pb2.AbandonRound(round=proto_from_round(ROUND), reason="aborted")),
            asked.AbandonRound(round=ROUND, reason="aborted"),
        ),
    ],
)
def test_instruction_is_read_as_its_value(answer: Answer, expected: Instruction) -> None:
    assert instruction_from_proto(answer) == expected


def test_answer_without_an_instruction_is_unknown() -> None:
    with pytest.raises(InstructionUnknownError):
        instruction_from_proto(Answer())


def test_instruction_for_no_run_is_refused() -> None:
    bad = round_pb2.RoundRef(run_id="../../etc", round_index=0, round_attempt=0)
    with pytest.raises(IdentifierInvalidError):
        instruction_from_proto(Answer(abandon=round_pb2.AbandonRound(round=bad, reason="x")))


def test_manifest_without_a_signature_is_refused() -> None:
    unsigned = signed_pb2.SignedBody(body=b"m0")
    train = round_pb2.TrainRound(round=proto_from_round(ROUND), manifest=unsigned)
    with pytest.raises(WireMessageInvalidError):
        instruction_from_proto(Answer(train=train))
