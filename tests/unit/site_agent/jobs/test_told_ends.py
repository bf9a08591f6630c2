from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from fl_protocol.telemetry.site_metrics import TRAINER_DEATHS
from site_agent.jobs.lives import EndCause, Lives, ProgressFollower, TrainerEnd, telling_ends


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (TrainerEnd(cause=EndCause.EXITED, exit_code=-signal.SIGKILL), "killed"),
        (TrainerEnd(cause=EndCause.EXITED, exit_code=137), "killed"),
        (TrainerEnd(cause=EndCause.EXITED, exit_code=1, is_out_of_memory=True), "killed"),
        (TrainerEnd(cause=EndCause.EXITED, exit_code=1), "exited"),
        (TrainerEnd(cause=EndCause.HUNG), "hung"),
        (TrainerEnd(cause=EndCause.RESTARTED), "restarted"),
    ],
)
async def test_end_of_a_life_is_told_to_whoever_runs_the_job(tmp_path: Path, end: TrainerEnd, how: str) -> None:
    told: list[str] = []
    lives = Lives(ProgressFollower(tmp_path, lambda _: None), "0.0", n_in_vain_allowed=3)

    async def run() -> None:
        lives.note(end)

    with telling_ends(lambda each: told.append(each.how)):
        # A runner may wait in a task of its own.
        await asyncio.create_task(run())
    lives.note(end)
    assert told == [how]
    assert how in TRAINER_DEATHS.labels[0].values
