"""``serve-spools`` as the product runs it, with the behaving trainer as its workers: JOBS_DIR WORKER_PROGRAM..."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from site_agent.training.spools import lanes_of, serve_spools

stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
jobs = Path(sys.argv[1])
serve_spools(jobs, lanes_of(jobs, program=tuple(sys.argv[2:])), should_stop=stopped.is_set)
