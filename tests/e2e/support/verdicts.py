"""What must hold after a run, whatever happened during it; and the same run undisturbed, to compare with."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.support.federation import Federation
from tests.e2e.support.template import RECORD_COUNTS, Study
from wardround.documents import Document, documents_of, text_of
from wardround.evidence.audit_export import verify_export
from wardround.evidence.release_folder import unpack_release, verify_release_folder

_SETTLE_TIMEOUT_S = 180.0
_SUMS = ("n_records", "n_eval_records", "n_clipped", "train_loss", "eval_loss", "update_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to: the released adapter's bytes, the sums of its rounds, the last public state of its sites."""

    adapter_sha256: str
    sums: tuple[tuple[object, ...], ...]
    state_sha256: str


def verified_outcome(federation: Federation, run_id: str, study: Study) -> Outcome:
    """Wait until the run is completed and its sites are at rest, hold it to everything that holds of any run."""
    federation.wait_for_end(run_id)
    federation.wait_until("every crash point was reached", lambda: not federation.missed_crashes(), timeout_s=120)
    federation.wait_until("the coordinator answers", lambda: federation.client.get("/api/v1/me"), timeout_s=120)
    rounds = federation.rounds(run_id)
    assert [found["state"] for found in rounds] == ["COMMITTED"] * (study.rounds + 1)
    for found in rounds:
        assert set(_texts(found["counted_sites"])) == set(study.sites)
    sums = sums_of_rounds(federation, run_id)
    assert [row[0] for row in sums[:-1]] == [sum(RECORD_COUNTS[site] for site in study.sites)] * study.rounds
    state = settled_state(federation, run_id, study.sites)
    adapter = released_adapter(federation, run_id)
    events = verified_audit(federation)
    committed = Counter(
        event["facts"]["round_index"]
        for event in events
        if event["kind"] == "round.committed" and event["facts"]["run_id"] == run_id
    )
    assert committed == dict.fromkeys(range(study.rounds + 1), 1)
    return Outcome(adapter_sha256=hashlib.sha256(adapter).hexdigest(), sums=sums, state_sha256=state)


def sums_of_rounds(federation: Federation, run_id: str) -> tuple[tuple[object, ...], ...]:
    """The published figures of each committed round."""
    metrics = federation.client.get(f"/api/v1/runs/{run_id}/metrics")
    return tuple(tuple(row[name] for name in _SUMS) for row in documents_of(metrics, "rounds"))


def settled_state(federation: Federation, run_id: str, sites: Sequence[str]) -> str:
    """Wait until every site has folded the last round itself; the one digest that all of their states have."""

    def files() -> dict[str, Path]:
        found = {site: _newest_state(federation.site_dir(site) / "states" / run_id) for site in sites}
        return {site: file for site, file in found.items() if file is not None}

    def have_same_version() -> bool:
        run = federation.client.get(f"/api/v1/runs/{run_id}/rounds/{len(federation.rounds(run_id)) - 1}")
        newest = files()
        return run["state"] == "COMMITTED" and len(newest) == len(sites) and len({f.name for f in newest.values()}) == 1

    def have_acknowledged() -> bool:
        events = audit_events(federation.client.text("/api/v1/audit/export"))
        last = len(federation.rounds(run_id)) - 1
        verified = {
            event["facts"]["site_id"]
            for event in events
            if event["kind"] == "result.verified"
            and (event["facts"]["run_id"], event["facts"]["round_index"]) == (run_id, last)
        }
        return verified >= set(sites)

    federation.wait_until("every site verified the last sum", have_acknowledged, timeout_s=_SETTLE_TIMEOUT_S)
    assert have_same_version()
    digests = {site: hashlib.sha256(file.read_bytes()).hexdigest() for site, file in files().items()}
    assert len(set(digests.values())) == 1, digests
    return next(iter(digests.values()))


def released_adapter(federation: Federation, run_id: str) -> bytes:
    """Sign, download and verify the release; its weights."""
    client = federation.client
    release = federation.wait_until(
        "there is a release", lambda: next(client.pages("/api/v1/releases", run_id=run_id), None), timeout_s=120
    )
    assert release is not None
    release_id = text_of(release, "release_id")
    for person in federation.people:
        person.sign(release_id, manifest_sha256=text_of(release, "manifest_sha256"), meaning="Read by a test.")
    archive, folder = federation.folder / "release.zip", federation.folder / "release"
    client.download(f"/api/v1/releases/{release_id}/download", archive)
    unpack_release(archive, folder)
    key = text_of(client.get("/api/v1/releases/keys"), "release_signing_key_sha256")
    verify_release_folder(folder, expected_key_sha256=key)
    assert len(list(client.pages("/api/v1/releases", run_id=run_id))) == 1
    return (folder / "adapter_model.safetensors").read_bytes()


def verified_audit(federation: Federation) -> list[Document]:
    """``audit verify`` of every party; the coordinator's events."""
    text = federation.client.text("/api/v1/audit/export")
    verify_export(text.splitlines())
    for name, document in federation.call_sites("audit", "verify").items():
        assert (document["exit"], document["is_verified"]) == (0, True), (name, document)
    return audit_events(text)


def audit_events(text: str) -> list[Document]:
    """The events of an export: kind, actor, facts."""
    lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    return [json.loads(base64.b64decode(line["body"])) for line in lines[1:] if "body" in line]


def _newest_state(folder: Path) -> Path | None:
    versions = sorted(folder.glob("v*.safetensors"), key=lambda file: int(file.stem[1:]))
    return versions[-1] if versions else None


def _texts(value: object) -> list[str]:
    assert isinstance(value, list)
    return [str(item) for item in value]
