"""After the last round: sign, download and verify the release, verify every log, show what was learned."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wardround.client.rest import RestClient
from wardround.demo.coordinator_host import CoordinatorHost
from wardround.demo.live_table import Progress
from wardround.demo.picture import RoundLine, round_lines, site_line
from wardround.demo.processes import Supervisor, run_parallel
from wardround.demo.showings import SHOWINGS, Released
from wardround.demo.site_host import SiteHost
from wardround.demo.summary import Generation
from wardround.demo.workspace import Programs, Workspace
from wardround.documents import Document, as_document, integer_of, section_of, text_of
from wardround.errors import DemoFailedError
from wardround.evidence.audit_export import verify_export
from wardround.evidence.release_folder import Standing, unpack_release, verify_release_folder

LEAD_MEANING = "Read the evaluation of a demonstration on this machine; for trying out only."
PRIVACY_MEANING = "Public data only; no objection to trying it out."
_RELEASE_TIMEOUT_S = 60.0
_SETTLE_TIMEOUT_S = 20.0
_LOOK_EVERY_S = 0.2
_AT_REST = frozenset({"idle", "settled", "declined", "failed", "abandoned", "stopped"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedRun:
    """What the end of a run gave. Invariant: release and logs were verified."""

    rounds: tuple[RoundLine, ...]
    metrics: Document
    audit_rows: dict[str, int]
    generation: Generation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """Everything that is needed to close a run of the demonstration."""

    coordinator: CoordinatorHost
    sites: tuple[SiteHost, ...]
    run_spec: Mapping[str, object]
    base_model_dir: Path
    workspace: Workspace
    supervisor: Supervisor
    programs: Programs
    progress: Progress

    def close(self, run_id: str) -> ClosedRun:
        """Do all of it.

        Raises:
            CommandError: a signature, a digest or a log does not verify, or a program failed.
        """
        self.release(run_id)
        with self.progress.step(_closing_sentence(self.run_spec)):
            self._wait_until_sites_rest()
            audit_rows = {"coordinator": self._verify_coordinator_log()}
            outcomes = run_parallel(
                self.supervisor,
                {
                    **{site.name: site.verify_audit for site in self.sites},
                    "generation": self._show,
                },
            )
        for site in self.sites:
            audit_rows[site.name] = integer_of(as_document(outcomes[site.name], source="audit verify"), "size")
        generation = outcomes["generation"]
        assert generation is None or isinstance(generation, Generation)
        # Last: what the sites were sent is counted after it was sent, and they fetch the last sum after the run's end.
        rounds = round_lines(self.client.pages(f"/api/v1/runs/{run_id}/rounds"))
        metrics = self.client.get(f"/api/v1/runs/{run_id}/metrics")
        return ClosedRun(rounds=rounds, metrics=metrics, audit_rows=audit_rows, generation=generation)

    @property
    def client(self) -> RestClient:
        """The admin's connection."""
        return self.coordinator.client

    def release(self, run_id: str) -> None:
        """Two persons review and sign the candidate; then anybody may download it, and verify who did."""
        key = text_of(self.client.get("/api/v1/releases/keys"), "release_signing_key_sha256")
        with self.progress.step("A candidate is there; a study lead and a privacy officer review it and sign"):
            release_id = text_of(self._wait_for_release(run_id), "release_id")
            for person, meaning in (
                (self.coordinator.lead, LEAD_MEANING),
                (self.coordinator.privacy_officer, PRIVACY_MEANING),
            ):
                candidate = self.workspace.root / "candidate"
                self._fetch(person.client, f"/api/v1/releases/{release_id}/candidate", candidate)
                reviewed = verify_release_folder(candidate, expected_key_sha256=key, standing=Standing.CANDIDATE)
                person.sign(release_id, manifest_sha256=reviewed.manifest_sha256, meaning=meaning)
                shutil.rmtree(candidate)
        with self.progress.step("The release is downloaded and verified"):
            self._fetch(self.client, f"/api/v1/releases/{release_id}/download", self.workspace.release)
            verified = verify_release_folder(self.workspace.release, expected_key_sha256=key)
        for one in verified.signatures:
            self.progress.say(f'  signed by {one.user} as {one.role}: "{one.meaning}"')

    def _fetch(self, client: RestClient, path: str, folder: Path) -> None:
        archive = self.workspace.root / "release.zip"
        client.download(path, archive)
        unpack_release(archive, folder)
        archive.unlink()

    def _wait_for_release(self, run_id: str) -> Document:
        deadline = time.monotonic() + _RELEASE_TIMEOUT_S
        while True:
            self.supervisor.check_alive()
            release = next(self.client.pages("/api/v1/releases", run_id=run_id), None)
            if release is not None:
                return release
            if time.monotonic() > deadline:
                raise DemoFailedError(
                    "the run is completed and there is no release", advice="See the coordinator's log."
                )
            time.sleep(_LOOK_EVERY_S)

    def _wait_until_sites_rest(self) -> None:
        """Let every site verify the last sum before its log is looked at; a slow one is verified as it is."""
        deadline = time.monotonic() + _SETTLE_TIMEOUT_S
        while time.monotonic() < deadline:
            self.supervisor.check_alive()
            if all(site_line(site.name, site.status_file).state in _AT_REST for site in self.sites):
                return
            time.sleep(_LOOK_EVERY_S)

    def _verify_coordinator_log(self) -> int:
        text = self.client.text("/api/v1/audit/export")
        (self.workspace.root / "audit.jsonl").write_text(text, encoding="utf-8")
        return verify_export(text.splitlines()).size

    def _show(self) -> Generation | None:
        show = SHOWINGS.get(str(section_of(self.run_spec, "task").get("kind")))
        if show is None:
            return None
        released = Released(
            run_spec=self.run_spec,
            base_model_dir=self.base_model_dir,
            release_dir=self.workspace.release,
            data_file=self.sites[0].data_file,
            supervisor=self.supervisor,
            programs=self.programs,
        )
        return show(released)


def _closing_sentence(run_spec: Mapping[str, object]) -> str:
    has_words = section_of(run_spec, "task").get("kind") in SHOWINGS
    return "Every audit log is verified" + ("; the model is asked before and after" if has_words else "")
