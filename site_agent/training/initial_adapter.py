"""Makes adapter v0 and its layout for a run: only a trainer can, for only a trainer knows the base model's shapes.

A study lead runs this before ``runs create``; every site's trainer recomputes both and refuses a mismatch (decision 9).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from fl_protocol.spec.faults import Fault, RunSpecFaultsError
from fl_protocol.spec.run_spec import RunSpec, bind_adapter, parse_run_spec
from site_agent.jobs.job_dir import LAYOUT_FILE, write_file
from site_agent.training.adapter_io import initial_adapter
from site_agent.training.model_files import verify_model_folder
from site_agent.training.tasks import TASKS

INITIAL_FILE = "initial.safetensors"


def make_initial_adapter(run_spec_file: Path, *, base_model: Path, out: Path) -> dict[str, object]:
    """Write ``layout.json`` and ``initial.safetensors`` into ``out`` and give their digests.

    Raises:
        RunSpecFaultsError: the specification is missing, not YAML, not valid, or names other digests.
        BaseModelError: the folder does not hold the specification's base model.
        TrainerError: no site could train this task or this adapter on this base.
    """
    spec = read_run_spec(run_spec_file)
    verify_model_folder(base_model, spec.base_model.sha256)
    layout = TASKS[spec.task.kind].layout_without_weights(base_model, spec)
    state = initial_adapter(layout, spec.local.seed)
    bind_adapter(spec, layout_sha256=layout.digest(), initial_sha256=state.digest())
    out.mkdir(parents=True, exist_ok=True)
    # The canonical bytes: SHA-256 of the file is the layout's digest.
    write_file(out / LAYOUT_FILE, layout.canonical_bytes())
    write_file(out / INITIAL_FILE, state.to_bytes())
    return {
        "layout_sha256": hashlib.sha256((out / LAYOUT_FILE).read_bytes()).hexdigest(),
        "initial_sha256": state.digest(),
        "n_parameters": layout.n_parameters,
        "base_model_sha256": spec.base_model.sha256,
    }


def read_run_spec(path: Path) -> RunSpec:
    """Read a run's specification from YAML or JSON.

    Raises:
        RunSpecFaultsError: with every fault.
    """
    try:
        document = _load(path.read_bytes())
    except OSError as error:
        raise RunSpecFaultsError([Fault(path="(document)", message=f"cannot be read: {error.strerror}")]) from error
    except yaml.YAMLError as error:
        raise RunSpecFaultsError([Fault(path="(document)", message="is not YAML")]) from error
    if not isinstance(document, Mapping):
        raise RunSpecFaultsError([Fault(path="(document)", message="is not a mapping")])
    return parse_run_spec(document)


def _load(content: bytes) -> object:
    """JSON first: YAML 1.1 reads ``5e-05``, as JSON writers put it, as a word."""
    try:
        loaded: object = json.loads(content)
    except ValueError:
        loaded = yaml.safe_load(content)
    return loaded
