"""A process full of real site agents whose trainer answers at once: the other end of ``python -m benchmarks rounds``.

Everything but the trainer is what a hospital runs: enrolment, policy, journal, site database, masking, gRPC over mutual
TLS. Speaks with the benchmark by one JSON line each way: invitations in, pins out, the run's specification in; then it
runs until its standard input closes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import structlog
import yaml

from fl_protocol.clock import SystemClock
from fl_protocol.free_memory import keep_room_for_chunks
from fl_protocol.ids import Sha256Hex
from fl_protocol.telemetry.meter import Meter
from fl_protocol.telemetry.site_metrics import SITE_METRICS
from fl_protocol.tensors.safetensors_io import bytes_from_tensors
from site_agent import daemon
from site_agent.audit.store import AuditLog, origin_of_site
from site_agent.cli.enrol_command import agent_version, record_enrolment
from site_agent.datasets.declaration import DatasetDeclaration
from site_agent.datasets.inspector import DataDescription, Inspection
from site_agent.datasets.registry import register_dataset
from site_agent.db.tx import SiteDb, open_site_db
from site_agent.enrolment.code import code_from_text
from site_agent.enrolment.enrol import EnrolmentOrder, enrol_site
from site_agent.enrolment.identity_file import SiteIdentity, load_identity
from site_agent.enrolment.keystore import KeyStore
from site_agent.enrolment.listener import NetworkEnrolmentListener
from site_agent.folder import SiteFolder
from site_agent.jobs.job_dir import PAYLOAD_FILE, JobKind, JobResult, JobSpec, write_job, write_result
from site_agent.jobs.runner import ProgressListener
from site_agent.link.channel import TlsIdentity, open_channel
from site_agent.link.client import CoordinatorClient
from site_agent.settings import SiteSettings, load_settings
from site_agent.supervision.approval_loop import ApprovalLoop
from site_agent.supervision.assignments import AssignmentLoop
from site_agent.supervision.policy_desk import PolicyDesk
from site_agent.supervision.seams import SiteSeams
from site_agent.supervision.status_board import StatusBoard
from wardround.demo.site_host import policy_for_run

N_RECORDS = 200
_DIGEST = Sha256Hex("0" * 64)
_MAX_THREADS = 64


class InstantTrainer:
    """A runner that writes a prepared payload, another one for each job: what a round costs beside training."""

    def __init__(self, n_parameters: int) -> None:
        """Prepare both payloads once."""
        evaluated: dict[str, np.ndarray] = {
            "eval_loss_sum": np.array([12.5]),
            "eval_tokens": np.array([40], np.int64),
            "eval_records": np.array([4], np.int64),
        }
        update = np.random.default_rng(7).normal(0, 1e-4, n_parameters).astype(np.float32)
        trained = {
            "adapter_update": update,
            "train_loss_sum": np.array([100.0]),
            "train_tokens": np.array([300], np.int64),
        }
        self._evaluated = bytes_from_tensors(evaluated)
        self._trained = bytes_from_tensors(evaluated | trained)
        self._place = self._trained.rindex(update.tobytes())

    def _payload(self, job: JobSpec) -> tuple[bytes | memoryview, ...]:
        if job.kind is JobKind.EVALUATE:
            return (self._evaluated,)
        # A site never masks one payload for two sums: the first weight is another one in each job.
        first = np.float32((job.seed % 9973) / 9973).tobytes()
        whole = memoryview(self._trained)
        return whole[: self._place], first, whole[self._place + len(first) :]

    async def run_training_job(self, job_dir: Path, job: JobSpec, *, on_progress: ProgressListener) -> JobResult:
        """Close the job at once."""
        del on_progress
        result = JobResult(
            records=N_RECORDS,
            patients=N_RECORDS,
            held_out_records=4,
            seconds=0.0,
            peak_memory_bytes=1,
            device="none",
            precision="none",
            versions={},
            sha256=_DIGEST,
        )

        def write() -> None:
            write_job(job_dir, job)
            with (job_dir / PAYLOAD_FILE).open("wb") as stream:
                stream.writelines(self._payload(job))
            write_result(job_dir, result)

        await asyncio.to_thread(write)
        return result

    async def end_orphans(self) -> None:
        """Nothing outlives its call."""

    async def stop_run(self, run_folder: Path) -> None:
        """Nothing is kept."""

    async def stop(self) -> None:
        """Nothing is kept."""


class _KnownCounts:
    """The dataset of a site that never reads one."""

    def inspect(self, description: DataDescription) -> Inspection:
        del description
        return Inspection(sha256=_DIGEST, n_records=N_RECORDS, n_patients=N_RECORDS)


def enrol(folder: SiteFolder, invitation: Mapping[str, str]) -> str:
    """Enrol one folder; returns the fingerprint of its signing key."""
    folder.root.mkdir(mode=0o700, parents=True)
    order = EnrolmentOrder(
        coordinator_address=invitation["enrolment_address"],
        code=code_from_text(invitation["code"]),
        root_fingerprint=None,
        agent_version=agent_version(),
    )
    clock = SystemClock()
    identity = enrol_site(
        folder,
        order,
        listener=NetworkEnrolmentListener(),
        now=clock.now(),
        record=lambda identity, signer: record_enrolment(folder, identity, signer, clock=clock),
    )
    return identity.signing_key_sha256


def configure(folder: SiteFolder, run_spec: dict[str, object], pins: Mapping[str, str]) -> None:
    """Peers, policy, base model and dataset, as this run needs them."""
    document = yaml.safe_load(folder.site_yaml.read_text(encoding="utf-8")) or {}
    base, data = run_spec["base_model"], run_spec["data"]
    assert isinstance(base, dict)
    assert isinstance(data, dict)
    model_dir = folder.root / "base"
    model_dir.mkdir()
    document |= {
        "peers": dict(pins),
        "runner": {"threads": 1},
        "base_models": {base["name"]: {"path": str(model_dir)}},
    }
    folder.site_yaml.write_text(yaml.safe_dump({k: v for k, v in document.items() if v is not None}))
    folder.policy_yaml.write_text(yaml.safe_dump(policy_for_run(run_spec)))
    data_file = folder.root / "data.jsonl"
    data_file.write_text("{}\n")
    declaration = DatasetDeclaration(
        name=str(data["dataset"]),
        path=data_file,
        format="jsonl",
        purposes=(str(run_spec["purpose"]),),
        description=None,
    )
    identity, clock, db = load_identity(folder), SystemClock(), open_site_db(folder.database)
    audit = AuditLog(KeyStore(folder).load_signer(), clock, origin_of_site(identity.site_id))
    try:
        register_dataset(db, audit, declaration, inspector=_KnownCounts(), actor="user:bench", now=clock.now())
    finally:
        db.close()


async def live(folder: SiteFolder, trainer: InstantTrainer, stack: AsyncExitStack) -> None:
    """One agent, as the daemon composes it, with the instant trainer."""
    settings, identity = load_settings(folder.root), load_identity(folder)
    db = open_site_db(folder.database)
    stack.callback(db.close)
    group = await stack.enter_async_context(asyncio.TaskGroup())
    audit = AuditLog(KeyStore(settings.folder).load_signer(), SystemClock(), origin_of_site(identity.site_id))
    policies = PolicyDesk(settings.policy_path, db=db, audit=audit)
    seams = await _seams(settings, identity, db, policies, stack, group)
    seams = replace(seams, runner=trainer)
    approvals = ApprovalLoop(seams, policies=policies, identity=identity, peers=lambda: settings.peers)
    assignments = AssignmentLoop(seams, backoff=daemon._backoff())  # noqa: SLF001 - the daemon's own composition
    await assignments.restore()
    for loop in (approvals.run, assignments.run, assignments.watch):
        task = group.create_task(loop())
        stack.callback(task.cancel)


async def _seams(
    settings: SiteSettings,
    identity: SiteIdentity,
    db: SiteDb,
    policies: PolicyDesk,
    stack: AsyncExitStack,
    group: asyncio.TaskGroup,
) -> SiteSeams:
    channel = open_channel(
        identity.gateway_address,
        TlsIdentity(
            root_pem=identity.root_pem,
            certificate_pem=identity.certificate_pem,
            private_key_pem=KeyStore(settings.folder).load_tls_key_pem(),
            server_name=identity.gateway_server_name,
        ),
    )
    board = StatusBoard(settings.folder.status_json, identity.site_id, SystemClock())
    stack.push_async_callback(channel.close)
    client = CoordinatorClient(channel, agent_version=agent_version())
    spawn = daemon._guarded_spawn(group)  # noqa: SLF001 - the daemon's own composition
    compose = daemon._compose  # noqa: SLF001 - as above
    meter = Meter(SITE_METRICS)
    return compose(settings, identity, db, client, policies=policies, board=board, meter=meter, spawn=spawn)


async def serve(folders: list[SiteFolder], n_parameters: int) -> None:
    """Let all agents live until standard input closes."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(max_workers=min(_MAX_THREADS, 6 * len(folders) + 2)))
    trainer = InstantTrainer(n_parameters)
    async with AsyncExitStack() as stack:
        for folder in folders:
            await live(folder, trainer, stack)
        print(json.dumps({"started": len(folders)}), flush=True)
        with ThreadPoolExecutor(max_workers=1) as waiting:
            await loop.run_in_executor(waiting, sys.stdin.read)
        # Nothing is left to save: the folders are thrown away, and the figures are with the benchmark.
        print(json.dumps({"cpu_s": time.process_time()}), flush=True)
        os._exit(0)


def main() -> int:
    """One line in, one line out, the specification in, then live."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(30), logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )
    keep_room_for_chunks(os.environ)
    order = json.loads(sys.stdin.readline())
    root = Path(order["root"])
    folders = {name: SiteFolder(root=root / name) for name in order["invitations"]}
    print(json.dumps({name: enrol(folders[name], order["invitations"][name]) for name in folders}), flush=True)
    run = json.loads(sys.stdin.readline())
    for folder in folders.values():
        configure(folder, run["run_spec"], run["pins"])
    asyncio.run(serve(list(folders.values()), run["n_parameters"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
