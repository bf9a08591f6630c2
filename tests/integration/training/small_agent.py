"""What of an agent runs a job, as a process that can be killed: ``small_agent.py JOB_DIR JOB_DOCUMENT``."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from site_agent.jobs.job_dir import JobSpec
from site_agent.jobs.process import ProcessRunner, ProcessRunnerOptions

OPTIONS = ProcessRunnerOptions(environment=dict(os.environ), threads=1, checkpoint_every_s=0.0)
JOB = JobSpec.from_document(json.loads(sys.argv[2]))

asyncio.run(ProcessRunner(OPTIONS).run_training_job(Path(sys.argv[1]), JOB, on_progress=lambda _: None))
