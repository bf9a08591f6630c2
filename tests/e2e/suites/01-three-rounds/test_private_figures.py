"""The detector itself: it must find a figure in every form, else the suite's silence would mean nothing."""

from __future__ import annotations

import json
import struct

import pytest

from fl_protocol.packing import pack, u32
from fl_protocol.wire.v1 import round_pb2, signed_pb2
from tests.e2e.support.private_figures import float_fields, found_figures

FIGURES = {"eval_loss": 2.4375621, "records": 211, "update_norm": 0.7312345}


def in_signed_body(body: bytes) -> round_pb2.AcknowledgeResultRequest:
    return round_pb2.AcknowledgeResultRequest(acknowledgement=signed_pb2.SignedBody(body=body, signature=b"s"))


@pytest.mark.parametrize(
    ("message", "figure"),
    [
        (round_pb2.ReportProgressRequest(step=211), "records"),
        (round_pb2.PollAssignmentRequest(wait_s=2.4375621), "eval_loss"),
        (in_signed_body(struct.pack("<d", 0.7312345)), "update_norm"),
        (in_signed_body(b"\1" + struct.pack(">d", 2.4375621) + b"rest"), "eval_loss"),
        (in_signed_body(json.dumps({"deep": [{"loss": 2.4375621}]}).encode()), "eval_loss"),
        (in_signed_body(pack(b"run-a", u32(211))), "records"),
        (in_signed_body(pack(b"outer", pack(b"inner", u32(211)))), "records"),
    ],
)
def test_figure_in_a_message_is_found(message: round_pb2.ReportProgressRequest, figure: str) -> None:
    assert any(found.endswith(figure) for found in found_figures(message, FIGURES))


def test_message_without_a_figure_is_let_pass() -> None:
    message = in_signed_body(pack(b"run-a", u32(3), json.dumps({"step": 4}).encode()))
    assert found_figures(message, FIGURES) == []


def test_float_field_is_named() -> None:
    assert float_fields(round_pb2.PollAssignmentRequest(wait_s=1.5)) == {"wait_s"}
