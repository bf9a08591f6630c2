"""The files of a run before it is created: its specification, and its initial adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from wardround.client.run_upload import InitialAdapter, read_initial_adapter
from wardround.demo.processes import Supervisor
from wardround.demo.workspace import Programs, Workspace

_ADAPTER_TIMEOUT_S = 300.0


def write_run_file(workspace: Workspace, run_spec: Mapping[str, object]) -> None:
    """Write the specification as a person would read it."""
    text = yaml.safe_dump(dict(run_spec), sort_keys=False, allow_unicode=True)
    workspace.run_file.write_text(text, encoding="utf-8")


def make_adapter(
    workspace: Workspace, base_model_dir: Path, *, supervisor: Supervisor, programs: Programs
) -> InitialAdapter:
    """Have the trainer's program make layout and initial state of the adapter of the workspace's specification.

    Raises:
        DemoFailedError: it failed.
    """
    options = ("--base-model", str(base_model_dir), "--out", str(workspace.adapter), "--json")
    arguments = (*programs.trainer, "init-adapter", "--run-spec", str(workspace.run_file), *options)
    supervisor.run_json("init-adapter", arguments, timeout_s=_ADAPTER_TIMEOUT_S)
    return read_initial_adapter(workspace.adapter)
