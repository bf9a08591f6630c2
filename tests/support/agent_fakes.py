"""The parts of an agent that are not in question where its rounds are: a trainer that computes nothing, a policy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from fl_protocol.ids import Sha256Hex
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.tensors.safetensors_io import bytes_from_tensors
from site_agent.datasets.registry import RegisteredDataset
from site_agent.jobs.job_dir import (
    PAYLOAD_FILE,
    JobResult,
    JobSpec,
    ProgressLine,
    ProgressState,
    write_job,
    write_result,
)
from site_agent.policy.rules import SumCheckMode
from site_agent.supervision.judgement import Permission

LAYOUT = AdapterLayout(
    kind="lora",
    tensors=(TensorSpec(name="m.lora_A.weight", shape=(2, 3)), TensorSpec(name="m.lora_B.weight", shape=(3, 2))),
    peft_config={},
)
DATA_SHA256 = Sha256Hex("cd" * 32)


class FakeRunner:
    """A trainer whose update follows from the job's seed."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.n_records = 200
        self.spoils: Callable[[dict[str, np.ndarray]], None] = lambda _: None

    async def run_training_job(
        self, job_dir: Path, job: JobSpec, *, on_progress: Callable[[ProgressLine], None]
    ) -> JobResult:
        self.seeds.append(job.seed)
        write_job(job_dir, job)
        on_progress(ProgressLine(state=ProgressState.TRAINING, step=1, steps=10, at="now", loss=3.25))
        raw: dict[str, np.ndarray] = {
            "eval_loss_sum": np.array([12.5]),
            "eval_tokens": np.array([40], np.int64),
            "eval_records": np.array([4], np.int64),
        }
        if job.kind.value == "train":
            update = np.random.default_rng(job.seed).normal(size=LAYOUT.n_parameters).astype(np.float32)
            raw |= {
                "adapter_update": update / np.float32(10.0),
                "train_loss_sum": np.array([100.0]),
                "train_tokens": np.array([300], np.int64),
            }
        self.spoils(raw)
        (job_dir / PAYLOAD_FILE).write_bytes(bytes_from_tensors(raw))
        result = JobResult(
            records=self.n_records,
            patients=self.n_records,
            held_out_records=4,
            seconds=0.1,
            peak_memory_bytes=1,
            device="cpu",
            precision="float32",
            versions={},
            sha256=DATA_SHA256,
        )
        write_result(job_dir, result)
        await asyncio.sleep(0)
        return result

    async def stop_run(self, run_folder: Path) -> None:
        pass

    async def stop(self) -> None:
        pass


class FakeJudge:
    """A policy that permits, under the strictest usual rules."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.check_sums = SumCheckMode.SAMPLED
        self.n_colluders = 0

    def sum_check_mode(self) -> SumCheckMode:
        return self.check_sums

    def assumed_colluders(self) -> int:
        return self.n_colluders

    def permit(self, run: object, *, is_training_ahead: bool) -> Permission:
        dataset = RegisteredDataset(
            name="medical-qa",
            path=self.data,
            format="jsonl",
            purposes=("research",),
            description=None,
            sha256=DATA_SHA256,
            n_records=200,
            n_patients=200,
            registered_at=datetime(2026, 1, 2, tzinfo=UTC),
            registered_by="steward",
            withdrawn_at=None,
        )
        return Permission(params=SecAggParams(assumed_colluders=self.n_colluders), dataset=dataset)
