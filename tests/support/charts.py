"""The two charts as `helm template` prints them, once for each set of values."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHARTS = ("coordinator", "site-agent")
VALUE_SETS = tuple(
    (chart, path.name.removesuffix("-values.yaml"))
    for chart in CHARTS
    for path in sorted((ROOT / "helm" / chart / "ci").glob("*-values.yaml"))
)
# The last entries of a path of an object that holds pods.
_POD_SPECS: Mapping[str, tuple[str, ...]] = {
    "Pod": (),
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}

Document = Mapping[str, Any]


def script(name: str) -> ModuleType:
    """A module of ``deploy/scripts``."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "deploy" / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@lru_cache
def helm() -> str:
    """Where Helm is; the test fails, and says what to do, where it is not."""
    path = script("get_helm").find_helm("3")
    if path is None:
        pytest.fail("Helm is missing: run `make setup`, or put Helm 3 on PATH", pytrace=False)
    return str(path)


def helm_says(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Helm; nothing of a real cluster is asked."""
    return subprocess.run([helm(), *arguments], check=False, capture_output=True, text=True, cwd=ROOT)


def template(chart: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``helm template`` of a chart as release "wr" in namespace "fl"."""
    return helm_says("template", "wr", f"helm/{chart}", "--namespace", "fl", *arguments)


def values_file(chart: str, name: str) -> str:
    """A set of values."""
    return str(ROOT / "helm" / chart / "ci" / f"{name}-values.yaml")


@lru_cache
def rendered(chart: str, values: str, *settings: str) -> tuple[Document, ...]:
    """The objects of a chart with a set of values, and ``--set`` over it."""
    # A tag may look like a number.
    overrides = [word for one in settings for word in ("--set-string" if ".tag=" in one else "--set", one)]
    done = template(chart, "--values", values_file(chart, values), *overrides)
    assert done.returncode == 0, done.stderr
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document is not None)


def of_kind(documents: tuple[Document, ...], kind: str) -> list[Document]:
    """The objects of one kind."""
    return [document for document in documents if document["kind"] == kind]


def named(documents: tuple[Document, ...], kind: str, suffix: str) -> Document:
    """The one object of a kind whose name ends so."""
    found = [one for one in of_kind(documents, kind) if one["metadata"]["name"].endswith(suffix)]
    assert len(found) == 1, f"{len(found)} objects {kind} *{suffix}"
    return found[0]


def pods(documents: tuple[Document, ...]) -> Iterator[tuple[str, Document]]:
    """Every pod and pod template, with where it is from."""
    for document in documents:
        if document["kind"] in _POD_SPECS:
            pod = document
            for key in _POD_SPECS[document["kind"]]:
                pod = pod[key]
            yield f"{document['kind']}/{document['metadata']['name']}", pod


def containers(pod: Document) -> list[Document]:
    """All containers of a pod, the first ones included."""
    spec = pod["spec"]
    assert "ephemeralContainers" not in spec
    return [*spec.get("initContainers", []), *spec["containers"]]


def selects(selector: Document, labels: Mapping[str, str]) -> bool:
    """Whether a label selector chooses these labels (Kubernetes: all requirements together)."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", []):
        value = labels.get(rule["key"])
        fits = {
            "In": value in rule.get("values", []),
            "NotIn": value not in rule.get("values", []),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[rule["operator"]]
        if not fits:
            return False
    return True
