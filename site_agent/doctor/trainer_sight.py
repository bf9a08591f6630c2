"""Gets the trainer's own word on its machine: from the process that the agent starts, or from the jobs folder.

Knows the trainer by its command line and its file only, never by import.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from site_agent.jobs.machine_sight import MachineSight, read_sight, sight_from_document
from site_agent.jobs.spool_files import is_trainer_alive
from site_agent.jobs.trainer_environment import trainer_environment
from site_agent.settings import SiteSettings

_COMMAND = (sys.executable, "-m", "site_agent.training", "machine", "--json")
_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerStanding:
    """Whether there is a trainer, and what it says of its machine; it may live and have said nothing yet."""

    is_alive: bool = False
    sight: MachineSight | None = None


def trainer_standing(settings: SiteSettings, *, environment: Mapping[str, str]) -> TrainerStanding:
    """How the trainer that does this site's jobs stands.

    Where the agent starts it, it is started for this, with the rights and the environment that it will have. One that
    serves the jobs folder has a heartbeat; where each job has a container of its own, there is none to be looked at.
    """
    if not settings.runner.is_trainer_elsewhere:
        sight = _started(settings, environment=environment)
        return TrainerStanding(is_alive=sight is not None, sight=sight)
    is_alive = settings.runner.kind != "spool" or is_trainer_alive(settings.jobs_dir)
    return TrainerStanding(is_alive=is_alive, sight=read_sight(settings.jobs_dir))


def _started(settings: SiteSettings, *, environment: Mapping[str, str]) -> MachineSight | None:
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
