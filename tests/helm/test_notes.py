"""The notes that an installation prints name objects that the same installation makes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.support.charts import ROOT, VALUE_SETS, helm_says, of_kind, rendered, values_file

KINDS = {"deployment": "Deployment", "statefulset": "StatefulSet", "service": "Service"}


def notes(folder: Path, chart: str, values: str) -> str:
    """The notes, as the text of a ConfigMap: ``helm template`` leaves notes out, and all else asks a cluster."""
    copy = folder / chart
    shutil.copytree(ROOT / "helm" / chart, copy)
    text = (copy / "templates" / "NOTES.txt").read_text()
    (copy / "templates" / "NOTES.txt").unlink()
    (copy / "templates" / "_notes.tpl").write_text('{{- define "notes" -}}\n' + text + "{{- end -}}\n")
    (copy / "templates" / "notes.yaml").write_text('notes: |\n  {{- include "notes" . | nindent 2 }}\n')
    words = ("wr", str(copy), "--namespace", "fl", "--values", values_file(chart, values))
    done = helm_says("template", *words, "--show-only", "templates/notes.yaml")
    assert done.returncode == 0, done.stderr
    return str(yaml.safe_load(done.stdout)["notes"])


@pytest.mark.parametrize(("chart", "values"), VALUE_SETS)
def test_notes_name_what_is_there_and_the_next_command(tmp_path: Path, chart: str, values: str) -> None:
    text = notes(tmp_path, chart, values)
    documents = rendered(chart, values, *(["upkeep.enabled=true"] if chart == "coordinator" else []))
    named = re.findall(r"\b(deployment|statefulset|service)/([a-z0-9-]+)", text)
    for kind, name in named:
        assert name in {one["metadata"]["name"] for one in of_kind(documents, KINDS[kind])}, name
    assert "--namespace fl test wr" in text
    assert ("wardround sites invite" in text) == (chart == "coordinator")
    assert ("datasets register" in text) == (chart == "site-agent")


@pytest.mark.parametrize(
    ("chart", "values", "warning"),
    [
        ("coordinator", "test", "WARNING: postgresql.enabled is for tests"),
        ("coordinator", "test", "WARNING: the private keys are in the claim wr-wardround-coordinator-keys"),
        ("coordinator", "minimal", "is reached inside the cluster only"),
        ("site-agent", "minimal", "The policy permits nothing yet"),
    ],
)
def test_notes_warn(tmp_path: Path, chart: str, values: str, warning: str) -> None:
    assert warning in notes(tmp_path, chart, values)


def test_notes_of_a_real_installation_do_not_warn(tmp_path: Path) -> None:
    assert "WARNING" not in notes(tmp_path, "coordinator", "full")
