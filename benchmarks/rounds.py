"""How long a round takes when nobody has to train: the price of durable rounds and of the secure sum, and who pays it.

A coordinator in its own process (SQLite, a folder of blobs, mutual TLS), and real site agents in a few others, whose
trainer answers at once. All of them share this machine, so that a round's seconds hold the sites' work as well: each
masks against every other site. The CPU seconds of both sides are told apart.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil

from benchmarks.rows import Row, announce, print_rows
from fl_protocol.folds.public_state import PublicState
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from wardround.client.run_upload import InitialAdapter, create_run
from wardround.demo.coordinator_host import CoordinatorHost, start_coordinator
from wardround.demo.processes import Supervisor
from wardround.demo.workspace import Checkout, DemoOptions, Programs, Workspace, child_environment
from wardround.documents import Document, documents_of

CASES: Mapping[str, int] = {"0.46M": 460_800, "4.2M": 4_200_000, "25M": 25_000_000}
GRID = (
    *((n, "0.46M") for n in (3, 8, 32, 100, 200)),
    *((n, "4.2M") for n in (3, 8, 32)),
    *((n, "25M") for n in (3, 8)),
)
AIMS_S = {(8, "0.46M"): 1.0, (8, "4.2M"): 3.0, (3, "25M"): 5.0, (8, "25M"): 12.0}
PEERS_S = {
    (8, "0.46M"): "NVFLARE 2.9 plaintext 3.0, HE 10.6; Flower 1.42 plaintext 14, SecAgg+ 57",
    (8, "4.2M"): "NVFLARE 2.9 plaintext 4.1; Flower 1.42 plaintext 25",
    (3, "25M"): "NVFLARE 2.9 plaintext 8.4; Flower 1.42 plaintext 20",
}
"""Median seconds of a round without training on two such cores, measured with the projects' own releases."""

_MAX_PROCESSES = 8
_TIMEOUT_S = 1800.0
_LOOK_EVERY_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One case: medians over its training rounds but the first, which warms everything up."""

    n_sites: int
    size: str
    seconds: float
    coordinator_cpu_s: float
    sites_cpu_s: float
    coordinator_peak_bytes: int
    coordinator_idle_bytes: int


class SitesProcess:
    """One process of agents."""

    def __init__(self, names: list[str], root: Path, environment: Mapping[str, str]) -> None:
        """Start it; it waits for its invitations."""
        self.names = names
        self._root = root
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.rounds_sites"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            text=True,
        )

    def say(self, document: Mapping[str, object]) -> None:
        """Write one line."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(document) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, str]:
        """Read one line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a process of sites ended early; its message is above")
        heard: dict[str, str] = json.loads(line)
        return heard

    def invite(self, invitations: Mapping[str, Document]) -> None:
        """Hand the codes over."""
        self.say({"root": str(self._root), "invitations": {name: invitations[name] for name in self.names}})

    def end(self) -> None:
        """Close its input, which ends it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def adapter_of(n_parameters: int) -> InitialAdapter:
    """An adapter of that many weights, in two tensors."""
    half = n_parameters // 2
    layout = AdapterLayout(
        kind="lora",
        tensors=(
            TensorSpec(name="base_model.model.q_proj.lora_A.weight", shape=(1, half)),
            TensorSpec(name="base_model.model.q_proj.lora_B.weight", shape=(n_parameters - half, 1)),
        ),
        peft_config={"peft_type": "LORA", "r": 1},
    )
    values = np.random.default_rng(5).normal(0, 0.02, n_parameters).astype(np.float32)
    state = PublicState(version=0, adapter=layout.unflatten(values))
    return InitialAdapter(
        layout=json.dumps(layout.to_document()).encode(),
        initial=state.to_bytes(),
        layout_sha256=layout.digest(),
        initial_sha256=state.digest(),
    )


def run_spec_of(names: list[str], n_rounds: int) -> dict[str, object]:
    """The run: everybody must take part, and no deadline is near."""
    return {
        "apiVersion": "wardround/v1",
        "kind": "Run",
        "name": "rounds-without-training",
        "purpose": "Measure",
        "task": {"kind": "instruction-tuning", "template": "chat"},
        "base_model": {"name": "none", "sha256": "0" * 64},
        "adapter": {"kind": "lora", "rank": 1, "alpha": 1, "targets": ["q_proj"]},
        "data": {"dataset": "none", "min_records": 1},
        "local": {"steps": 10, "batch_size": 4, "max_length": 64, "learning_rate": 0.001, "seed": 7},
        "aggregation": {"algorithm": "fedavg-lora"},
        "cohort": {"sites": names, "quorum": len(names), "round_deadline_s": 1800, "phase_deadline_s": 1200},
        "secure_aggregation": {"min_cohort": 3},
        "privacy": {"clip_norm": 10.0, "weight_cap": 10000},
        "evaluation": {"every": n_rounds},
        "rounds": n_rounds,
    }


@contextmanager
def federation(n_sites: int, folder: Path) -> Iterator[tuple[CoordinatorHost, psutil.Process, list[SitesProcess]]]:
    """A coordinator and the processes of its sites, enrolled by nobody yet."""
    checkout = Checkout.of_this_package()
    environment = child_environment(dict(os.environ), checkout)
    workspace = Workspace.create(DemoOptions(work_dir=folder / "work"), checkout, now=datetime.now(UTC))
    names = [f"site-{number:03}" for number in range(n_sites)]
    n_processes = min(n_sites, _MAX_PROCESSES)
    with ExitStack() as stack:
        supervisor = stack.enter_context(Supervisor(workspace.logs, environment))
        host = start_coordinator(workspace, supervisor, Programs())
        stack.callback(host.close)
        pid = json.loads((workspace.coordinator / "serve.json").read_text())["pid"]
        parts = []
        for number in range(n_processes):
            parts.append(SitesProcess(names[number::n_processes], workspace.sites, environment))
            stack.callback(parts[-1].end)
        yield host, psutil.Process(pid), parts


def measure(n_sites: int, size: str, n_rounds: int) -> Measured:
    """Run one case."""
    announce(f"{n_sites} sites, {size} parameters, {n_rounds} rounds")
    n_parameters = CASES[size]
    with tempfile.TemporaryDirectory() as name, federation(n_sites, Path(name)) as (host, coordinator, parts):
        names = sorted(site for part in parts for site in part.names)
        invitations = {site: host.client.post("/api/v1/sites", {"name": site}) for site in names}
        for part in parts:
            part.invite(invitations)
        pins = {site: pin for part in parts for site, pin in part.hear().items()}
        run_spec = run_spec_of(names, n_rounds)
        for part in parts:
            part.say({"run_spec": run_spec, "pins": pins, "n_parameters": n_parameters})
        for part in parts:
            part.hear()
        run = create_run(host.lead.client, run_spec, adapter_of(n_parameters))
        idle_bytes = coordinator.memory_info().rss
        host.client.post(f"/api/v1/runs/{run['run_id']}:start")
        return _watch(host, coordinator, parts, str(run["run_id"]), n_sites=n_sites, size=size, idle_bytes=idle_bytes)


def _watch(
    host: CoordinatorHost,
    coordinator: psutil.Process,
    parts: list[SitesProcess],
    run_id: str,
    *,
    n_sites: int,
    size: str,
    idle_bytes: int,
) -> Measured:
    """Look until the run has ended; CPU is read from the end of the first round to the end."""
    deadline = time.monotonic() + _TIMEOUT_S
    sites = [psutil.Process(part.process.pid) for part in parts]
    warm_at: tuple[int, float, float] | None = None
    while True:
        run = host.client.get(f"/api/v1/runs/{run_id}")
        rounds = list(documents_of(host.client.get(f"/api/v1/runs/{run_id}/rounds"), "items"))
        n_done = sum(1 for line in rounds if line.get("state") == "COMMITTED")
        if n_done and warm_at is None:
            warm_at = (n_done, _cpu_s([coordinator]), _cpu_s(sites))
        if run["state"] == "COMPLETED":
            break
        if run["state"] in {"FAILED", "CANCELLED"} or time.monotonic() > deadline:
            raise RuntimeError(f"the run is {run['state']}: {run.get('reason')} {run.get('waiting_for')}")
        time.sleep(_LOOK_EVERY_S)
    assert warm_at is not None
    n_counted = max(1, len(rounds) - warm_at[0])
    opened = [datetime.fromisoformat(str(line["opened_at"])) for line in rounds]
    # From opening to opening: what a round costs a run, with the settling of the last one in it.
    spans = [(after - before).total_seconds() for before, after in pairwise(opened)]
    return Measured(
        n_sites=n_sites,
        size=size,
        seconds=statistics.median(spans[1:] or spans),
        coordinator_cpu_s=(_cpu_s([coordinator]) - warm_at[1]) / n_counted,
        sites_cpu_s=(_cpu_s(sites) - warm_at[2]) / n_counted,
        coordinator_peak_bytes=_peak_bytes(coordinator),
        coordinator_idle_bytes=idle_bytes,
    )


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def _peak_bytes(process: psutil.Process) -> int:
    for line in Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell a program's peak memory (VmHWM in /proc/PID/status)")


def rows_of(measured: list[Measured]) -> list[Row]:
    """Seconds, CPU and memory of each case, against the aims and against fewer sites."""
    rows: list[Row] = []
    for case in measured:
        label = f"{case.n_sites} sites x {case.size}"
        aim = AIMS_S.get((case.n_sites, case.size))
        peers = PEERS_S.get((case.n_sites, case.size), "")
        rows += [
            Row(
                name=f"round: {label}",
                value=case.seconds,
                unit="s",
                yardstick=aim,
                yardstick_name="; ".join(part for part in ("aim" if aim else "", peers) if part),
                ratio=aim / case.seconds if aim else None,
                within=case.seconds <= aim if aim else None,
            ),
            Row(name=f"coordinator's CPU a round: {label}", value=case.coordinator_cpu_s, unit="CPU-s"),
            Row(name=f"sites' CPU a round, all together: {label}", value=case.sites_cpu_s, unit="CPU-s"),
            Row(
                name=f"coordinator's peak memory: {label}",
                value=case.coordinator_peak_bytes / 1e6,
                unit="MB",
                yardstick=case.coordinator_idle_bytes / 1e6,
                yardstick_name="before the run started",
                ratio=case.coordinator_idle_bytes / case.coordinator_peak_bytes,
            ),
        ]
    return rows + growth_rows(measured)


def growth_rows(measured: list[Measured]) -> list[Row]:
    """How the coordinator's work grows with the sites: 1 is linear."""
    rows: list[Row] = []
    for size in CASES:
        cases = sorted((case for case in measured if case.size == size), key=lambda case: case.n_sites)
        if len(cases) < 2 or cases[-1].n_sites < 2 * cases[0].n_sites:
            continue
        few, many = cases[-2] if len(cases) > 2 else cases[0], cases[-1]
        exponent = math.log(many.coordinator_cpu_s / few.coordinator_cpu_s) / math.log(many.n_sites / few.n_sites)
        rows.append(
            Row(
                name=f"growth of the coordinator's CPU, {few.n_sites} to {many.n_sites} sites x {size}",
                value=exponent,
                unit="power",
                yardstick=1.0,
                yardstick_name="linear in sites",
                ratio=1.0 / exponent if exponent > 0 else None,
            )
        )
    return rows


def main(arguments: list[str]) -> int:
    """Measure and print; exit 1 when a stated aim is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks rounds", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--only", help="one case, for example 8x0.46M")
    parser.add_argument("--rounds", type=int, default=4, help="training rounds a case; the first warms up")
    parser.add_argument("--quick", action="store_true", help="3 and 8 sites at 0.46M: to see that it runs")
    options = parser.parse_args(arguments)
    grid = [case for case in GRID if not options.quick or case in {(3, "0.46M"), (8, "0.46M")}]
    if options.only:
        n_sites, _, size = options.only.partition("x")
        grid = [(int(n_sites), size)]
    measured = []
    for n_sites, size in grid:
        measured.append(measure(n_sites, size, options.rounds))
        # Said at once: whoever has to stop a long grid keeps what was measured.
        announce(f"  {measured[-1]}")
    rows = rows_of(measured)
    print_rows(rows, as_json=options.json)
    return 0 if all(row.within is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
