"""The files of a release: weights, a model card, the signed manifest, and the evidence.

What peft can load has peft's names. Pure: from a lineage and the final public state to bytes. The manifest names the
digest of every other file.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import rfc8785

from coordinator.services.model_card import model_card
from coordinator.services.release_lineage import Lineage, LineageRound
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import Sha256Hex
from fl_protocol.signing.keys import Signer, spki_fingerprint
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.tensors.safetensors_io import bytes_from_tensors

RELEASE_KIND = "WR/sig/release"
APPROVALS_KIND = "WR/sig/release-approvals"
FORMAT = "wardround-release/2"
MANIFEST = "manifest.json"
MANIFEST_SIGNATURE = "manifest.sig"
RELEASE_APPROVALS = "evidence/release_approvals.json"
"""The one file that the manifest cannot name: the signatures in it are over the manifest."""
NO_LEDGER = (
    "No noise was added, so there is no privacy loss to account for and no guarantee to state. This version has no "
    "noise mechanism; the ledger of one that has will stand here."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFolder:
    """All files by path, the manifest and its signature among them."""

    files: Mapping[str, bytes]
    manifest: bytes
    signature: bytes
    continuation_sha256: Sha256Hex

    @property
    def manifest_sha256(self) -> str:
        """What an approval names."""
        return hashlib.sha256(self.manifest).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseKeys:
    """Who signs the manifest, whose receipts and checkpoints are inside, and the name of the log."""

    release_signer: Signer
    coordinator_spki: bytes
    origin: str


def build_release(
    lineage: Lineage, state: PublicState, *, release_id: str, keys: ReleaseKeys, now: datetime
) -> ReleaseFolder:
    """Write the folder.

    Raises:
        AdapterTensorError: the state's tensors are not those of the run's layout.
    """
    lineage.layout.check(state.adapter)
    files: dict[str, bytes] = {
        "adapter_config.json": _json(lineage.layout.peft_config),
        lineage.spec.adapter.kind.weights_file: bytes_from_tensors(state.adapter, {"format": "pt"}),
        "README.md": model_card(lineage, release_id=release_id, created_at=now).encode(),
        "evidence/run_spec.json": lineage.run_spec_json,
        "evidence/adapter_layout.json": lineage.layout.canonical_bytes(),
        "evidence/approvals.json": _json(_approvals(lineage)),
        "evidence/rounds.json": _json([_round_evidence(one) for one in lineage.rounds]),
        "evidence/privacy_ledger.json": _json(_privacy_ledger(lineage)),
        "evidence/audit_checkpoint.json": _json(_checkpoint(lineage, keys)),
    }
    continuation = continuation_digest(state)
    manifest = _json(
        _manifest(lineage, release_id=release_id, keys=keys, now=now, files=files, continuation_sha256=continuation)
    )
    signed = sign_body(keys.release_signer, RELEASE_KIND, manifest)
    files[MANIFEST] = manifest
    files[MANIFEST_SIGNATURE] = _json(
        {
            "kind": RELEASE_KIND,
            "key_sha256": spki_fingerprint(keys.release_signer.spki_der),
            "spki": _text(keys.release_signer.spki_der),
            "signature": _text(signed.signature),
        }
    )
    return ReleaseFolder(files=files, manifest=manifest, signature=signed.signature, continuation_sha256=continuation)


def continuation_digest(state: PublicState) -> Sha256Hex:
    """The digest of the initial state by which a run begins from this state's adapter: version 0, a fresh optimiser."""
    return PublicState(version=0, adapter=state.adapter).digest()


def signed_approvals(
    signer: Signer,
    *,
    release_id: str,
    manifest_sha256: str,
    n_needed: int,
    statements: Sequence[bytes],
    checkpoint: SignedBody,
) -> SignedBody:
    """What persons said of a release, under the release key: exact bytes, never rendered again.

    Args:
        signer: the release key.
        release_id: which release.
        manifest_sha256: of the manifest that all of them name.
        n_needed: how many signatures the coordinator's rules ask for.
        statements: canonical JSON each, in the order of signing.
        checkpoint: the signed head of the log, the signatures' events included.
    """
    document: dict[str, object] = {
        "release_id": release_id,
        "manifest_sha256": manifest_sha256,
        "signatures_needed": n_needed,
        "statements": [json.loads(statement) for statement in statements],
        "audit_checkpoint": _signed(checkpoint),
    }
    return sign_body(signer, APPROVALS_KIND, rfc8785.dumps(document))  # type: ignore[arg-type]  # JSON values


def approvals_file(approvals: SignedBody, *, release_spki: bytes) -> bytes:
    """``evidence/release_approvals.json``: the document as JSON, whose canonical form (RFC 8785) is what is signed."""
    return _json(
        {
            "kind": APPROVALS_KIND,
            "key_sha256": spki_fingerprint(release_spki),
            "spki": _text(release_spki),
            "signature": _text(approvals.signature),
            "approvals": json.loads(approvals.body),
        }
    )


def _manifest(
    lineage: Lineage,
    *,
    release_id: str,
    keys: ReleaseKeys,
    now: datetime,
    files: Mapping[str, bytes],
    continuation_sha256: str,
) -> dict[str, object]:
    spec = lineage.spec
    return {
        "format": FORMAT,
        "release_id": release_id,
        "run_id": lineage.run_id,
        "name": spec.name,
        "purpose": spec.purpose,
        "created_at": now.isoformat(),
        "run_spec_sha256": lineage.run_spec_sha256,
        "base_model": spec.base_model.to_document(),
        "adapter": spec.adapter.to_document(),
        "trainer": {"image_sha256": spec.trainer.image_sha256},
        "public_state": {
            "version": lineage.public_state_version,
            "sha256": lineage.public_state_sha256,
        },
        "cohort": [{"site_id": name, "signing_key_sha256": pin} for name, pin in sorted(spec.cohort.pins.items())],
        "approvals": [
            {
                "site_id": one.site_id,
                "decision": one.decision,
                "statement_sha256": hashlib.sha256(one.statement.body).hexdigest(),
            }
            for one in lineage.approvals
        ],
        "datasets": [
            # A dataset's digest is the site's to tell: null where its approval does not.
            {"site_id": one.site_id, "dataset": one.dataset, "sha256": one.dataset_sha256}
            for one in lineage.approvals
        ],
        "parents": [{"release_id": one.release_id, "manifest_sha256": one.manifest_sha256} for one in lineage.parents],
        "continues_as": continuation_sha256,
        "rounds": [
            {
                "round_index": one.round_index,
                "round_attempt": one.round_attempt,
                "kind": one.kind,
                "counted_sites": list(one.counted_sites),
                "result_sha256": one.result_sha256,
                "sum_sha256": one.sum_blob_sha256,
                "transcript_root": one.transcript_root,
                "state_sha256_after": one.state_sha256_after,
            }
            for one in lineage.rounds
        ],
        "evaluation": {"loss_before": lineage.eval_loss_before, "loss_after": lineage.eval_loss_after},
        "privacy": _privacy(lineage),
        "audit": {"origin": keys.origin, "size": lineage.checkpoint.size, "head": lineage.checkpoint.head},
        "coordinator_signing_key_sha256": spki_fingerprint(keys.coordinator_spki),
        "files": {
            path: {"sha256": hashlib.sha256(content).hexdigest(), "n_bytes": len(content)}
            for path, content in sorted(files.items())
        },
    }


def _privacy(lineage: Lineage) -> dict[str, object]:
    privacy = lineage.spec.privacy
    return {
        "secure_aggregation": lineage.spec.secure_aggregation.to_document(),
        "mechanism": privacy.mechanism.value,
        "clip_norm": privacy.clip_norm,
        "weight_cap": privacy.weight_cap,
        # No noise, no guarantee: an honest null rather than a number that means nothing.
        "epsilon": None,
        "delta": None,
    }


def _privacy_ledger(lineage: Lineage) -> dict[str, object]:
    return {**_privacy(lineage), "entries": [], "note": NO_LEDGER}


def _approvals(lineage: Lineage) -> list[dict[str, object]]:
    return [
        {
            "site_id": one.site_id,
            "decision": one.decision,
            "at": one.at.isoformat(),
            "statement": _signed(one.statement),
            "signing_spki": _text(one.signing_spki),
        }
        for one in lineage.approvals
    ]


def _round_evidence(one: LineageRound) -> dict[str, object]:
    return {
        "round_index": one.round_index,
        "round_attempt": one.round_attempt,
        "kind": one.kind,
        "manifest": _signed(one.manifest),
        "result": _signed(one.result),
        "sum_sha256": one.sum_blob_sha256,
        "counted_sites": list(one.counted_sites),
        "report": dict(one.report),
        "acknowledgements": {site_id: _signed(said) for site_id, said in one.acknowledgements.items()},
        "receipts": {site_id: _signed(said) for site_id, said in one.receipts.items()},
    }


def _checkpoint(lineage: Lineage, keys: ReleaseKeys) -> dict[str, object]:
    checkpoint = lineage.checkpoint
    return {
        "origin": keys.origin,
        "size": checkpoint.size,
        "head": checkpoint.head,
        "at": checkpoint.at.isoformat(),
        "body": checkpoint.body,
        "signature": checkpoint.signature,
        "signing_spki": _text(keys.coordinator_spki),
    }


def _signed(signed: SignedBody) -> dict[str, str]:
    return {"body": _text(signed.body), "signature": _text(signed.signature)}


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _json(document: object) -> bytes:
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"
