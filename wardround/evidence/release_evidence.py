"""Does the evidence in a release folder say what its manifest says? Who signed the manifest could have written both.

What the coordinator cannot write is what the sites signed. In this order, each on what the step before has established:

1. run_spec.json has the digest that the manifest names, and the manifest's cohort, base model and adapter are its own
2. adapter_layout.json is the layout of the RunSpec, and the weights are what the manifest continues as
3. approvals.json: each is signed by the key that the RunSpec pins for that site, and is its yes to this RunSpec of this
   run, or the withdrawal of one
4. rounds.json: the coordinator signed each manifest and result; each manifest names the result and the state before it;
   the receipts are the coordinator's; each acknowledgement is signed by its site and names the same result and state
5. privacy_ledger.json says what the manifest says, and is empty where no noise was added
6. audit_checkpoint.json is a head that the coordinator signed, and the manifest's
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.audit.checkpoint import verify_checkpoint
from fl_protocol.errors import ProtocolError
from fl_protocol.folds.public_state import PublicState
from fl_protocol.packing import pack, u32, unpack
from fl_protocol.signing.keys import spki_fingerprint
from fl_protocol.spec.adapters.adapter_spec import PEFT_WEIGHTS_FILE, WEIGHTS_FILE
from fl_protocol.spec.round_spec import NO_DIGEST, RoundKind, RoundManifest
from fl_protocol.spec.run_spec import RunSpec, run_spec_from_bytes
from fl_protocol.tensors.adapter_layout import AdapterLayout
from fl_protocol.tensors.safetensors_io import tensors_from_bytes
from wardround.documents import Document, as_document, document_from_text, documents_of, integer_of, text_of, texts_of
from wardround.evidence.release_faults import (
    ReleaseFault,
    bytes_under,
    fault,
    is_signed_by,
    json_file,
    reading,
    signed_in,
)

RUN_SPEC = "evidence/run_spec.json"
LAYOUT = "evidence/adapter_layout.json"
APPROVALS = "evidence/approvals.json"
ROUNDS = "evidence/rounds.json"
LEDGER = "evidence/privacy_ledger.json"
CHECKPOINT = "evidence/audit_checkpoint.json"
FILES = (RUN_SPEC, LAYOUT, APPROVALS, ROUNDS, LEDGER, CHECKPOINT)
_APPROVAL_KIND, _MANIFEST_KIND, _RESULT_KIND = "WR/sig/approval", "SA1/sig/M0", "SA1/sig/M10"
_DECISIONS = frozenset({"approved", "withdrawn"})
"""A site that withdrew before the end may have been counted before."""
_RECEIPT_KIND, _ACKNOWLEDGEMENT_KIND = "WR/sig/receipt", "WR/sig/ack"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEvidence:
    """What was found to hold, in numbers."""

    n_site_approvals: int
    n_rounds: int
    n_receipts: int
    n_acknowledgements: int


def verify_release_evidence(folder: Path, manifest: Document) -> VerifiedEvidence:
    """Do the six checks on a folder whose files are known to be those that the manifest names.

    Raises:
        EvidenceFaultError: one does not hold; ``reason`` and ``file`` are among its facts.
    """
    for file in FILES:
        if not (folder / file).is_file():
            raise fault(ReleaseFault.FILE_MISSING, f"{file} is missing", file=file)
    spec = reading(RUN_SPEC, lambda: _check_run_spec(folder, manifest))
    weights = _weights_file(folder, spec)
    reading(weights, lambda: _check_adapter(folder, manifest, spec, weights=weights))
    coordinator_spki = reading(CHECKPOINT, lambda: _coordinator_key(folder, manifest))
    site_keys = reading(APPROVALS, lambda: _check_approvals(folder, manifest, spec))
    counts = reading(ROUNDS, lambda: _check_rounds(folder, manifest, site_keys, coordinator_spki=coordinator_spki))
    reading(LEDGER, lambda: _check_ledger(folder, manifest, spec))
    reading(CHECKPOINT, lambda: _check_head(folder, manifest, coordinator_spki))
    return VerifiedEvidence(
        n_site_approvals=len(site_keys), n_rounds=counts[0], n_receipts=counts[1], n_acknowledgements=counts[2]
    )


def _check_run_spec(folder: Path, manifest: Document) -> RunSpec:
    content = (folder / RUN_SPEC).read_bytes()
    if hashlib.sha256(content).hexdigest() != text_of(manifest, "run_spec_sha256"):
        raise fault(ReleaseFault.RUN_SPEC, "the RunSpec is not the one that the manifest names", file=RUN_SPEC)
    spec = run_spec_from_bytes(content)
    cohort = {text_of(one, "site_id"): text_of(one, "signing_key_sha256") for one in documents_of(manifest, "cohort")}
    said = (cohort, manifest.get("base_model"), manifest.get("adapter"), manifest.get("purpose"))
    if said != (spec.cohort.pins, spec.base_model.to_document(), spec.adapter.to_document(), spec.purpose):
        raise fault(ReleaseFault.RUN_SPEC, "the manifest's lineage is not that of the RunSpec", file=RUN_SPEC)
    return spec


def _weights_file(folder: Path, spec: RunSpec) -> str:
    """The one file with weights. Every release had peft's name for it until other kinds got one of their own."""
    own = spec.adapter.kind.weights_file
    found = [name for name in (PEFT_WEIGHTS_FILE, WEIGHTS_FILE) if (folder / name).is_file()]
    if not {own, PEFT_WEIGHTS_FILE} & set(found):
        raise fault(ReleaseFault.FILE_MISSING, f"{own} is missing", file=own)
    if len(found) > 1:
        # Safety: one of them would be checked, and the other perhaps loaded.
        raise fault(ReleaseFault.ADAPTER, f"there are weights in {' and in '.join(found)}", file=found[1])
    return found[0]


def _check_adapter(folder: Path, manifest: Document, spec: RunSpec, *, weights: str) -> None:
    layout = AdapterLayout.from_document(as_document(json_file(folder, LAYOUT), source=LAYOUT))
    if layout.digest() != spec.adapter.layout_sha256:
        raise fault(ReleaseFault.ADAPTER, "the layout is not the one that the RunSpec names", file=LAYOUT)
    tensors = tensors_from_bytes((folder / weights).read_bytes())
    layout.check(tensors)
    if PublicState(version=0, adapter=tensors).digest() != text_of(manifest, "continues_as"):
        raise fault(ReleaseFault.ADAPTER, "the weights are not those of the manifest", file=weights)


def _check_approvals(folder: Path, manifest: Document, spec: RunSpec) -> dict[str, bytes]:
    """The signing key of each site that approved, by its name."""
    named = {text_of(one, "site_id"): text_of(one, "statement_sha256") for one in documents_of(manifest, "approvals")}
    pins = {str(name): pin for name, pin in spec.cohort.pins.items()}
    keys: dict[str, bytes] = {}
    digests: dict[str, str] = {}
    for one in _documents(folder, APPROVALS):
        site_id, spki = text_of(one, "site_id"), bytes_under(one, "signing_spki")
        signed = signed_in(as_document(one.get("statement"), source=APPROVALS))
        if pins.get(site_id) != spki_fingerprint(spki) or not is_signed_by(spki, _APPROVAL_KIND, signed):
            message = f"the approval of {site_id[:80]} is not signed by the key that the RunSpec pins for it"
            raise fault(ReleaseFault.SITE_APPROVAL, message, file=APPROVALS)
        said = document_from_text(signed.body.decode(), source=APPROVALS)
        about = (said.get("run_id"), said.get("run_spec_sha256"))
        if about != (manifest.get("run_id"), manifest.get("run_spec_sha256")) or said.get("decision") not in _DECISIONS:
            message = f"the statement of {site_id[:80]} does not approve this run"
            raise fault(ReleaseFault.SITE_APPROVAL, message, file=APPROVALS)
        keys[site_id], digests[site_id] = spki, hashlib.sha256(signed.body).hexdigest()
    if digests != named:
        raise fault(ReleaseFault.SITE_APPROVAL, "the approvals are not those of the manifest", file=APPROVALS)
    return keys


def _coordinator_key(folder: Path, manifest: Document) -> bytes:
    spki = bytes_under(as_document(json_file(folder, CHECKPOINT), source=CHECKPOINT), "signing_spki")
    if spki_fingerprint(spki) != text_of(manifest, "coordinator_signing_key_sha256"):
        raise fault(ReleaseFault.AUDIT_HEAD, "the head is not under the coordinator's key", file=CHECKPOINT)
    return spki


@dataclass(frozen=True, slots=True, kw_only=True)
class _Before:
    """What the manifest of the next round has to name."""

    result_sha256: str
    state_sha256: str | None


def _check_rounds(
    folder: Path, manifest: Document, site_keys: Mapping[str, bytes], *, coordinator_spki: bytes
) -> tuple[int, int, int]:
    rounds, named = _documents(folder, ROUNDS), documents_of(manifest, "rounds")
    if len(rounds) != len(named) or not rounds:
        raise fault(ReleaseFault.ROUND_CHAIN, "the rounds are not those of the manifest", file=ROUNDS)
    adapter = as_document(manifest.get("adapter"), source="manifest.json")
    before = _Before(result_sha256=NO_DIGEST, state_sha256=text_of(adapter, "initial_sha256"))
    last_trained: str | None = before.state_sha256
    n_receipts = n_acknowledgements = 0
    for one, summary in zip(rounds, named, strict=True):
        before = _check_round(one, summary, manifest, before=before, coordinator_spki=coordinator_spki)
        if text_of(one, "kind") == RoundKind.TRAIN.value:
            last_trained = before.state_sha256
        n_receipts += _check_receipts(one, coordinator_spki)
        n_acknowledgements += _check_acknowledgements(one, manifest, site_keys, after=before)
        if not set(texts_of(one, "counted_sites")) <= set(site_keys):
            raise fault(ReleaseFault.ROUND_CHAIN, "a site was counted that did not approve", file=ROUNDS)
    public_state = as_document(manifest.get("public_state"), source="manifest.json")
    if last_trained != text_of(public_state, "sha256"):
        raise fault(ReleaseFault.ROUND_CHAIN, "the last round does not end in the released state", file=ROUNDS)
    return len(rounds), n_receipts, n_acknowledgements


def _check_round(
    one: Document, summary: Document, manifest: Document, *, before: _Before, coordinator_spki: bytes
) -> _Before:
    index = integer_of(one, "round_index")
    opened, result = (signed_in(as_document(one.get(key), source=ROUNDS)) for key in ("manifest", "result"))
    if not is_signed_by(coordinator_spki, _MANIFEST_KIND, opened):
        raise fault(ReleaseFault.ROUND_MANIFEST, f"the manifest of round {index} is not signed", file=ROUNDS)
    if not is_signed_by(coordinator_spki, _RESULT_KIND, result):
        raise fault(ReleaseFault.ROUND_RESULT, f"the result of round {index} is not signed", file=ROUNDS)
    m0 = RoundManifest.decode(opened.body)
    about = (m0.run_id, m0.round_index, m0.round_attempt, m0.kind.value, m0.run_spec_sha256)
    expected = (
        manifest.get("run_id"),
        index,
        integer_of(one, "round_attempt"),
        text_of(one, "kind"),
        manifest.get("run_spec_sha256"),
    )
    if about != expected:
        raise fault(ReleaseFault.ROUND_MANIFEST, f"the manifest of round {index} is of another round", file=ROUNDS)
    if (m0.previous_result_sha256, m0.public_state_sha256) != (before.result_sha256, before.state_sha256):
        message = f"round {index} does not begin from the result and the state that the round before it led to"
        raise fault(ReleaseFault.ROUND_CHAIN, message, file=ROUNDS)
    result_sha256 = hashlib.sha256(result.encode()).hexdigest()
    state = summary.get("state_sha256_after")
    shared = ("round_index", "round_attempt", "kind", "counted_sites", "sum_sha256")
    if text_of(summary, "result_sha256") != result_sha256 or any(one.get(key) != summary.get(key) for key in shared):
        raise fault(ReleaseFault.ROUND_RESULT, f"round {index} is not the manifest's", file=ROUNDS)
    # An evaluation changes no state: what follows it begins from the same one.
    return _Before(result_sha256=result_sha256, state_sha256=state if isinstance(state, str) else before.state_sha256)


def _check_receipts(one: Document, coordinator_spki: bytes) -> int:
    receipts = as_document(one.get("receipts"), source=ROUNDS)
    for site_id, said in receipts.items():
        signed = signed_in(as_document(said, source=ROUNDS))
        if not is_signed_by(coordinator_spki, _RECEIPT_KIND, signed) or unpack(signed.body, 6)[1] != site_id.encode():
            raise fault(ReleaseFault.RECEIPT, f"the receipt of {site_id[:80]} is not the coordinator's", file=ROUNDS)
    return len(receipts)


def _check_acknowledgements(
    one: Document, manifest: Document, site_keys: Mapping[str, bytes], *, after: _Before
) -> int:
    acknowledgements = as_document(one.get("acknowledgements"), source=ROUNDS)
    if after.state_sha256 is None and acknowledgements:
        raise fault(ReleaseFault.ACKNOWLEDGEMENT, "a state was acknowledged that is not named", file=ROUNDS)
    m10 = signed_in(as_document(one.get("result"), source=ROUNDS)).encode()
    expected = pack(
        text_of(manifest, "run_id").encode(),
        u32(integer_of(one, "round_index")),
        hashlib.sha256(m10).digest(),
        bytes.fromhex(after.state_sha256 or ""),
    )
    for site_id, said in acknowledgements.items():
        signed = signed_in(as_document(said, source=ROUNDS))
        spki = site_keys.get(site_id)
        if spki is None or not is_signed_by(spki, _ACKNOWLEDGEMENT_KIND, signed) or signed.body != expected:
            message = f"{site_id[:80]} did not acknowledge this result and this state under its key"
            raise fault(ReleaseFault.ACKNOWLEDGEMENT, message, file=ROUNDS)
    return len(acknowledgements)


def _check_ledger(folder: Path, manifest: Document, spec: RunSpec) -> None:
    ledger = as_document(json_file(folder, LEDGER), source=LEDGER)
    privacy = as_document(manifest.get("privacy"), source="manifest.json")
    said = {key: value for key, value in ledger.items() if key not in {"entries", "note"}}
    is_empty = ledger.get("entries") == [] and privacy.get("epsilon") is None and privacy.get("delta") is None
    is_of_spec = privacy.get("mechanism") == spec.privacy.mechanism.value
    if said != privacy or not is_empty or not is_of_spec:
        message = "the ledger is not the manifest's, or names a privacy loss where no noise was added"
        raise fault(ReleaseFault.PRIVACY_LEDGER, message, file=LEDGER)


def _check_head(folder: Path, manifest: Document, coordinator_spki: bytes) -> None:
    document = as_document(json_file(folder, CHECKPOINT), source=CHECKPOINT)
    audit = as_document(manifest.get("audit"), source="manifest.json")
    try:
        checkpoint = verify_checkpoint(coordinator_spki, signed_in(document))
    except ProtocolError as error:
        raise fault(ReleaseFault.AUDIT_HEAD, "the head of the audit log is not signed", file=CHECKPOINT) from error
    for said in (audit, document):
        named = (said.get("origin"), said.get("size"), said.get("head"))
        if named != (checkpoint.origin, checkpoint.size, checkpoint.head):
            raise fault(ReleaseFault.AUDIT_HEAD, "the signed head is not the one that is named", file=CHECKPOINT)


def _documents(folder: Path, file: str) -> tuple[Document, ...]:
    return documents_of({"items": json_file(folder, file)}, "items")
