"""One site of a demonstration: enrolled by its one-time code, configured as its own engineer would, started, verified.

Each site has its own folder with its own keys and databases. The pins of the other sites are taken from each site's own
``identity show``, never from the coordinator.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from wardround.client.rest import RestClient
from wardround.demo.processes import Child, Supervisor, tail_of
from wardround.demo.workspace import Programs
from wardround.documents import Document, section_of, text_of

_CALL_TIMEOUT_S = 180.0
_INSPECTION_TIMEOUT_S = 900.0
"""Every record is looked at; and a trainer's program may have to be started first."""
_EGRESS_BYTES = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteHost:
    """One site's folder and how its program is called."""

    name: str
    folder: Path
    data_file: Path
    supervisor: Supervisor
    programs: Programs
    data_format: str = "jsonl"

    @property
    def process_name(self) -> str:
        """Under which name its log lies."""
        return f"site-{self.name}"

    @property
    def status_file(self) -> Path:
        """What the agent says of itself."""
        return self.folder / "status.json"

    def enrol(self, client: RestClient) -> str:
        """Invite by REST, enrol by the code; returns the fingerprint of the signing key as the site itself tells it."""
        invitation = client.post("/api/v1/sites", {"name": self.name})
        self._call(
            "enrol",
            "--coordinator",
            text_of(invitation, "enrolment_address"),
            "--code",
            text_of(invitation, "code"),
            "--root-fingerprint",
            text_of(invitation, "root_fingerprint"),
        )
        return self.fingerprint()

    @property
    def is_enrolled(self) -> bool:
        """Whether an earlier start enrolled it: then it has its configuration."""
        return (self.folder / "site.yaml").is_file()

    def fingerprint(self) -> str:
        """Of the signing key, as the site itself tells it."""
        return text_of(self._call("identity", "show"), "signing_key_sha256")

    def configure(self, run_spec: Mapping[str, object], *, pins: Mapping[str, str], base_model_dir: Path) -> None:
        """Write ``site.yaml`` (peers, threads, base model) and a policy for exactly this run."""
        site_yaml = self.folder / "site.yaml"
        loaded = yaml.safe_load(site_yaml.read_text(encoding="utf-8"))
        document: dict[str, object] = dict(loaded) if isinstance(loaded, dict) else {}
        document["peers"] = dict(pins)
        document["runner"] = {**section_of(document, "runner"), "threads": threads_per_site(len(pins))}
        name = str(section_of(run_spec, "base_model").get("name"))
        document["base_models"] = {name: {"path": str(base_model_dir)}}
        _write_yaml(site_yaml, document)
        policy_file = self.folder / str(document.get("policy", "policy.yaml"))
        _write_yaml(policy_file, policy_for_run(run_spec))

    def register_dataset(self, run_spec: Mapping[str, object], *, purposes: Sequence[str]) -> Document:
        """``wardround-site datasets register``: the file's digest and counts stay at the site."""
        declaration = self.folder / "dataset.yaml"
        dataset = {
            "name": section_of(run_spec, "data").get("dataset"),
            "path": str(self.data_file),
            "format": self.data_format,
            "purposes": list(purposes),
        }
        _write_yaml(declaration, dataset)
        return self._call("datasets", "register", str(declaration), timeout_s=_INSPECTION_TIMEOUT_S)

    def start(self) -> Child:
        """Start the agent."""
        return self.supervisor.start(self.process_name, (*self._program(), "start"))

    def log_tail(self) -> tuple[str, ...]:
        """The last lines of the agent's log."""
        return tail_of(self.supervisor.log_of(self.process_name))

    def verify_audit(self) -> Document:
        """``wardround-site audit verify``.

        Raises:
            DemoFailedError: the log does not verify; the row is in the error's log tail.
        """
        return self._call("audit", "verify")

    def _call(self, *words: str, timeout_s: float = _CALL_TIMEOUT_S) -> Document:
        program = self._program("--json")
        return self.supervisor.run_json(f"{self.process_name}-setup", (*program, *words), timeout_s=timeout_s)

    def _program(self, *options: str) -> tuple[str, ...]:
        return (*self.programs.site, *options, "--state-dir", str(self.folder))


def policy_for_run(run_spec: Mapping[str, object]) -> dict[str, object]:
    """The narrowest policy that permits this run without a person: its task, model, adapter, dataset and purpose."""
    adapter, data = section_of(run_spec, "adapter"), section_of(run_spec, "data")
    aggregation = section_of(run_spec, "secure_aggregation")
    dataset = str(data.get("dataset"))
    ranks = {} if adapter.get("rank") is None else {"max_rank": adapter.get("rank")}
    smallest, threshold = (section_of(run_spec, "task").get(key) for key in ("site_minimum", "threshold"))
    cells: dict[str, object] = {} if smallest is None else {"smallest_cell": smallest}
    if isinstance(smallest, int) and isinstance(threshold, int) and smallest < threshold:
        cells["rare_codes_in_sums"] = "allowed"
    return {
        "tasks": [section_of(run_spec, "task").get("kind")],
        "base_models": [f"sha256:{section_of(run_spec, 'base_model').get('sha256')}"],
        "adapters": {"kinds": [adapter.get("kind")], **ranks},
        "algorithms": [section_of(run_spec, "aggregation").get("algorithm")],
        "local_rules": [section_of(run_spec, "local").get("rule", "plain")],
        "datasets": {dataset: {"purposes": [run_spec.get("purpose")], "min_records": data.get("min_records", 0)}},
        "secure_aggregation": {"min_cohort": aggregation.get("min_cohort", 3), "assumed_colluders": 0},
        "privacy": {"without_dp": "allowed", **cells},
        "egress": {"max_bytes_per_round": _EGRESS_BYTES},
        "approval": "automatic",
    }


def threads_per_site(n_sites: int) -> int:
    """The share of this machine's processors that one site's trainer gets; at least one."""
    return max(1, len(os.sched_getaffinity(0)) // n_sites)


def _write_yaml(path: Path, document: Mapping[str, object]) -> None:
    path.write_text(yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True), encoding="utf-8")
