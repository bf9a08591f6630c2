"""``policy check`` of a policy that is well formed and does not say what was meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from site_agent.cli.app import run_program


def test_name_that_no_run_can_have_is_remarked_on_with_those_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "tasks: [instruction-tunning]\nadapters: {kinds: [lorra, lora], max_rank: 8}\nlocal_rules: [plane]\n"
    )
    assert run_program(["policy", "check", str(policy), "--json"]) == 0
    remarks = " ".join(json.loads(capsys.readouterr().out)["remarks"])
    assert "tasks: this version knows no instruction-tunning; it knows instruction-tuning, " in remarks
    assert "adapters.kinds: this version knows no lorra; " in remarks
    assert "local_rules: this version knows no plane; " in remarks
    assert "algorithms" not in remarks
