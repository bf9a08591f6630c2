"""From a run's YAML file and the folder that ``init-adapter`` wrote to a run at the coordinator.

Checks the specification and both digests here first, so that every fault is shown before anything is uploaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from fl_protocol.errors import ProtocolError
from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.faults import RunSpecFaultsError
from fl_protocol.spec.run_spec import parse_run_spec
from fl_protocol.tensors.adapter_layout import AdapterLayout
from wardround.client.rest import RestClient
from wardround.documents import Document, document_from_text
from wardround.errors import NotFoundError, SpecRefusedError, UsageInvalidError

INIT_ADVICE = "Make it: python -m site_agent.training init-adapter --run-spec FILE --base-model DIR --out DIR"


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialAdapter:
    """Layout and initial public state as ``init-adapter`` wrote them, with the digests that a RunSpec names."""

    layout: bytes
    initial: bytes
    layout_sha256: str
    initial_sha256: str


def read_initial_adapter(folder: Path) -> InitialAdapter:
    """Read ``layout.json`` and ``initial.safetensors``.

    Raises:
        NotFoundError: one of them is not there.
        UsageInvalidError: one of them cannot be read.
    """
    try:
        layout = (folder / "layout.json").read_bytes()
        initial = (folder / "initial.safetensors").read_bytes()
    except OSError as error:
        raise NotFoundError(f"{folder} holds no initial adapter ({error.strerror})", advice=INIT_ADVICE) from error
    try:
        layout_document = document_from_text(layout.decode(), source="layout.json")
        return InitialAdapter(
            layout=layout,
            initial=initial,
            layout_sha256=AdapterLayout.from_document(layout_document).digest(),
            initial_sha256=PublicState.from_bytes(initial).digest(),
        )
    except (ProtocolError, UnicodeDecodeError) as error:
        raise UsageInvalidError(f"the initial adapter in {folder} is damaged: {error}", advice=INIT_ADVICE) from error


def read_spec_file(path: Path) -> dict[str, object]:
    """The mapping in a YAML or JSON file.

    Raises:
        NotFoundError: there is no such file.
        UsageInvalidError: it holds something else.
    """
    try:
        document = _load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageInvalidError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UsageInvalidError(f"{path} is no YAML: {error}", advice="Look at the line that it names.") from error
    if not isinstance(document, dict):
        raise UsageInvalidError(f"{path} holds no mapping", advice="A run begins with 'apiVersion: wardround/v1'.")
    return document


def _load(text: str) -> object:
    """JSON first: YAML 1.1 reads ``5e-05``, as JSON writers put it, as a word."""
    try:
        loaded: object = json.loads(text)
    except ValueError:
        loaded = yaml.safe_load(text)
    return loaded


def with_adapter(document: Mapping[str, object], adapter: InitialAdapter) -> dict[str, object]:
    """The specification with the digests of its initial adapter; digests that it already names must be the same."""
    section = document.get("adapter")
    if not isinstance(section, Mapping):
        return dict(document)  # check_spec says what is wrong with it
    made = {"layout_sha256": adapter.layout_sha256, "initial_sha256": adapter.initial_sha256}
    faults = tuple(
        (f"adapter.{key}", f"names another digest than the initial adapter has ({digest})")
        for key, digest in made.items()
        if section.get(key) not in (None, digest)
    )
    if faults:
        raise SpecRefusedError("the run specification is not of this adapter", faults=faults, advice=INIT_ADVICE)
    return {**document, "adapter": {**section, **made}}


def check_spec(document: Mapping[str, object]) -> None:
    """Refuse a wrong specification with all its faults.

    Raises:
        SpecRefusedError: every fault with its path.
    """
    try:
        parse_run_spec(document)
    except RunSpecFaultsError as error:
        raise SpecRefusedError(
            f"the run specification has {len(error.faults)} fault(s); nothing was sent",
            faults=tuple((fault.path, fault.message) for fault in error.faults),
            advice="Correct every line above, then try again.",
        ) from error


def create_run(client: RestClient, document: Mapping[str, object], adapter: InitialAdapter) -> Document:
    """Check, upload and create; returns the run."""
    complete = with_adapter(document, adapter)
    check_spec(complete)
    return client.post(
        "/api/v1/runs",
        {
            "run_spec": complete,
            "layout_blob_sha256": client.put_blob(adapter.layout),
            "initial_blob_sha256": client.put_blob(adapter.initial),
        },
    )
