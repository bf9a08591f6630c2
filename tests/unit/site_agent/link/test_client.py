"""What a reason becomes on the wire."""

from __future__ import annotations

import re

import pytest

from site_agent.link.client import code_on_the_wire


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("cohort-too-small", "cohort-too-small"),
        ("secure_aggregation.min_cohort", "secure_aggregation.min_cohort"),
        ("datasets.Herz Studie (2).min_records", "datasets.herz-studie--2-.min_records"),
        ("", "refused"),
        ("x" * 300, "x" * 100),
    ],
)
def test_reason_becomes_a_code(reason: str, code: str) -> None:
    assert code_on_the_wire(reason) == code
    assert re.fullmatch(r"[a-z0-9][a-z0-9._:-]{0,99}", code_on_the_wire(reason))
