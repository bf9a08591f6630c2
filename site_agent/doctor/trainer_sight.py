"""Gets the trainer's own word on its machine: from the process that the agent starts, or from the jobs folder.

Knows the trainer by its command line and its file only, never by import.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

from site_agent.jobs.machine_sight import MachineSight, read_sight, sight_from_document
from site_agent.jobs.trainer_environment import trainer_environment
from site_agent.settings import SiteSettings

_COMMAND = (sys.executable, "-m", "site_agent.training", "machine", "--json")
_TIMEOUT_S = 180.0
STARTED_BY_AGENT = "process"


def trainer_sight(settings: SiteSettings, *, environment: Mapping[str, str]) -> MachineSight | None:
    """What the trainer that does this site's jobs sees; None where it has said nothing.

    With the runner ``process`` the trainer is started for it, with the rights and the environment that it will have.
    """
    if settings.runner.kind != STARTED_BY_AGENT:
        return read_sight(settings.folder.jobs_dir)
    try:
        # Safety: no shell, and every argument is one word of a fixed command line.
        finished = subprocess.run(  # noqa: S603 - the program is this installation's own
            _COMMAND,
            env=trainer_environment(environment, threads=settings.runner.threads),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
        document = json.loads(finished.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return sight_from_document(document) if isinstance(document, dict) else None
