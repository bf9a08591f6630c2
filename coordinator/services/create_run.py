"""A study lead proposes a run: every fault is told at once, or the RunSpec is frozen as the bytes to be approved."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.blobs.store import BlobStore
from coordinator.db.audit import append_audit
from coordinator.db.models import Run, Site
from coordinator.db.states import SiteState
from coordinator.errors import BlobNotFoundError
from coordinator.rounds.run_machine import RunState
from coordinator.services.resources import Resources
from coordinator.services.show_runs import RunView, run_view
from fl_protocol.audit.events import AuditKind
from fl_protocol.errors import ProtocolError
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import RunId, SiteId, run_id_from_text
from fl_protocol.spec.faults import Fault, RunSpecFaultsError
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec, resolve_run_spec
from fl_protocol.tensors.adapter_layout import AdapterLayout

_MAX_LAYOUT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProposal:
    """What a study lead sends: the draft, and the blobs of the adapter that ``init-adapter`` made."""

    run_spec: Mapping[str, object]
    layout_blob_sha256: str
    initial_blob_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resolved:
    """A draft in which everything was found: the frozen spec, the layout's bytes and the initial state's digest."""

    spec: RunSpec
    layout_json: bytes
    initial_sha256: str


def create_run(resources: Resources, proposal: RunProposal, *, actor: str) -> RunView:
    """Check the draft against the enrolled sites and the uploaded adapter, and store it.

    Raises:
        RunSpecFaultsError: every fault, with its path; nothing was stored.
    """
    pins = resources.db.read("read_pins", _pins_of_enrolled_sites)
    resolved = _resolve(resources.blobs, proposal, pins=pins)
    spec = resolved.spec
    now = resources.now()
    run_id = new_run_id()

    def create(session: Session) -> RunView:
        # The keys are read again, so that the cohort is that of this transaction.
        if resolve_run_spec(spec, _pins_of_enrolled_sites(session)).canonical_bytes() != spec.canonical_bytes():
            raise RunSpecFaultsError([Fault(path="cohort.sites", message="a site changed meanwhile; try again")])
        run = Run(
            run_id=run_id,
            name=spec.name,
            state=RunState.DRAFT.value,
            reason=None,
            run_spec_json=spec.canonical_bytes(),
            run_spec_sha256=spec.digest(),
            layout_json=resolved.layout_json,
            layout_blob_sha256=proposal.layout_blob_sha256,
            initial_blob_sha256=proposal.initial_blob_sha256,
            public_state_version=0,
            public_state_sha256=resolved.initial_sha256,
            public_state_blob_sha256=proposal.initial_blob_sha256,
            last_result_sha256=None,
            next_round_index=0,
            next_round_attempt=0,
            created_by=actor,
            created_at=now,
            started_at=None,
            finished_at=None,
        )
        session.add(run)
        session.flush()
        facts = {"run_id": run_id, "name": spec.name, "run_spec_sha256": run.run_spec_sha256}
        append_audit(session, AuditKind.RUN_CREATED, actor=actor, facts=facts, now=now)
        return run_view(session, run, now=now)

    return resources.db.run_tx("create_run", create)


def new_run_id() -> RunId:
    """``run-`` and 130 random bits in base 32."""
    return run_id_from_text("run-" + base64.b32encode(secrets.token_bytes(20)).decode().lower()[:26])


def _pins_of_enrolled_sites(session: Session) -> dict[SiteId, str]:
    query = select(Site).where(Site.state == SiteState.ENROLLED.value)
    return {SiteId(site.site_id): site.signing_key_sha256 or "" for site in session.scalars(query)}


def _resolve(blobs: BlobStore, proposal: RunProposal, *, pins: Mapping[SiteId, str]) -> _Resolved:
    faults: list[Fault] = []
    spec: RunSpec | None = None
    try:
        spec = parse_run_spec(proposal.run_spec)
    except RunSpecFaultsError as error:
        faults.extend(error.faults)
        faults.extend(_cohort_faults(proposal.run_spec, pins=pins))
    else:
        try:
            spec = resolve_run_spec(spec, pins)
        except RunSpecFaultsError as error:
            faults.extend(error.faults)
    layout = _read_layout(blobs, proposal.layout_blob_sha256, faults=faults)
    initial = _read_initial(blobs, proposal.initial_blob_sha256, faults=faults)
    if layout is not None and initial is not None:
        try:
            layout[0].check(initial.adapter)
        except ProtocolError as error:
            faults.append(Fault(path="initial_blob_sha256", message=f"does not fit the layout: {error}"))
    if spec is not None:
        faults.extend(_adapter_faults(spec, layout=None if layout is None else layout[0], initial=initial))
    if faults or spec is None or layout is None or initial is None:
        raise RunSpecFaultsError(faults)
    return _Resolved(spec=spec, layout_json=layout[1], initial_sha256=initial.digest())


def _cohort_faults(document: Mapping[str, object], *, pins: Mapping[SiteId, str]) -> list[Fault]:
    """Sites that are not enrolled, in a draft that is wrong elsewhere too: all faults are told at once."""
    cohort = document.get("cohort")
    sites = cohort.get("sites") if isinstance(cohort, Mapping) else None
    faults = []
    for index, entry in enumerate(sites if isinstance(sites, (list, tuple)) else ()):
        name = entry.get("name") if isinstance(entry, Mapping) else entry
        if isinstance(name, str) and name not in pins:
            faults.append(Fault(path=f"cohort.sites[{index}]", message=f"no enrolled site is called {name[:80]!r}"))
    return faults


def _read_layout(blobs: BlobStore, sha256: str, *, faults: list[Fault]) -> tuple[AdapterLayout, bytes] | None:
    try:
        if blobs.size(sha256) > _MAX_LAYOUT_BYTES:
            faults.append(Fault(path="layout_blob_sha256", message="the blob is too large to be a layout"))
            return None
        content = blobs.read(sha256)
        return AdapterLayout.from_document(json.loads(content)), content
    except BlobNotFoundError:
        faults.append(Fault(path="layout_blob_sha256", message="no blob has this digest; upload layout.json first"))
    except (ValueError, ProtocolError) as error:
        faults.append(Fault(path="layout_blob_sha256", message=f"the blob is no adapter layout: {error}"))
    return None


def _read_initial(blobs: BlobStore, sha256: str, *, faults: list[Fault]) -> PublicState | None:
    try:
        state = PublicState.from_bytes(blobs.read(sha256), is_shared=True)
    except BlobNotFoundError:
        message = "no blob has this digest; upload initial.safetensors first"
        faults.append(Fault(path="initial_blob_sha256", message=message))
    except ProtocolError as error:
        faults.append(Fault(path="initial_blob_sha256", message=f"the blob is no public state: {error}"))
    else:
        if state.version == 0:
            return state
        faults.append(Fault(path="initial_blob_sha256", message="the initial state has version 0"))
    return None


def _adapter_faults(spec: RunSpec, *, layout: AdapterLayout | None, initial: PublicState | None) -> list[Fault]:
    faults = []
    if spec.adapter.layout_sha256 is None:
        faults.append(Fault(path="adapter.layout_sha256", message="is missing; `init-adapter` prints it"))
    elif layout is not None and layout.digest() != spec.adapter.layout_sha256:
        faults.append(Fault(path="adapter.layout_sha256", message="is not the digest of the uploaded layout"))
    if spec.adapter.initial_sha256 is None:
        faults.append(Fault(path="adapter.initial_sha256", message="is missing; `init-adapter` prints it"))
    elif initial is not None and initial.digest() != spec.adapter.initial_sha256:
        faults.append(Fault(path="adapter.initial_sha256", message="is not the digest of the uploaded initial state"))
    if layout is not None and layout.kind != spec.adapter.kind.value:
        faults.append(Fault(path="adapter.kind", message=f"the uploaded layout is of kind {layout.kind!r}"))
    return faults
