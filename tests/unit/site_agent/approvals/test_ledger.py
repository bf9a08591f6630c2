from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from site_agent.approvals.errors import RunDocumentInvalidError
from site_agent.approvals.ledger import payload_bytes


def test_payload_bytes_is_four_a_parameter_and_eight_a_scalar(run_spec: RunSpec, layout: AdapterLayout) -> None:
    # 2 x 8 x 16 parameters; weight, was_clipped, train tokens and loss, evaluation tokens, loss and records.
    assert payload_bytes(run_spec, layout.canonical_bytes()) == 4 * (2 * 8 * 16) + 8 * 7


def test_payload_bytes_of_another_layout_is_refused(run_spec: RunSpec, layout: AdapterLayout) -> None:
    smaller = replace(layout, tensors=(TensorSpec(name="a.weight", shape=(1,)),))
    with pytest.raises(RunDocumentInvalidError):
        payload_bytes(run_spec, smaller.canonical_bytes())


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff"])
def test_payload_bytes_of_no_layout_is_refused(text: bytes, make_run_spec: Callable[..., RunSpec]) -> None:
    with pytest.raises(RunDocumentInvalidError):
        payload_bytes(make_run_spec(), text)
