"""Which runner, and which inspector of data, a site's settings name. A composition, for the agent and its commands."""

from __future__ import annotations

import os
from typing import assert_never

from site_agent.datasets.inspector import Inspector, JobInspector, SubprocessInspector
from site_agent.jobs.process import ProcessRunner, ProcessRunnerOptions
from site_agent.jobs.runner import JobRunner
from site_agent.jobs.spool import SpoolRunner, SpoolRunnerOptions
from site_agent.settings import SiteSettings


def runner_of(settings: SiteSettings) -> JobRunner:
    """The runner that ``runner.kind`` names. It starts nothing before its first job.

    Raises:
        RunnerError: the settings name what this runner refuses; the advice says what to write.
    """
    runner = settings.runner
    match runner.kind:
        case "process":
            return ProcessRunner(
                ProcessRunnerOptions(
                    threads=runner.threads,
                    processes=None if runner.processes == "auto" else runner.processes,
                    environment=dict(os.environ),
                    jobs_dir=settings.jobs_dir,
                    idle_timeout_s=runner.idle_timeout_s,
                    checkpoint_every_s=runner.checkpoint_every_s,
                )
            )
        case "spool":
            return SpoolRunner(
                SpoolRunnerOptions(
                    jobs_dir=settings.jobs_dir,
                    idle_timeout_s=runner.idle_timeout_s,
                    absent_after_s=runner.absent_after_s,
                )
            )
        case other:
            assert_never(other)


def inspector_of(settings: SiteSettings) -> Inspector:
    """What looks at data files: whatever runs the jobs, since only that sees the data.

    Raises:
        RunnerError: as ``runner_of``.
    """
    if not settings.runner.is_trainer_elsewhere:
        return SubprocessInspector()
    return JobInspector(runner_of(settings), settings.jobs_dir)
