"""The files of the jobs folder by which an agent and a trainer that it did not start speak.

    trainer.json            the trainer's heartbeat: which life of it, and what it is at
    RUN/ROUND/cancel        the agent gives the job up
    RUN/ROUND/restart       the agent takes the trainer for hung
    RUN/ROUND/ends.jsonl    how each life ended that did not close the job
    RUN/stop                the run is over: what is kept warm for it may go
    inspections/ID/         a job folder for a dataset that is to be registered or checked

Knows names and documents, and starts nothing.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from site_agent.jobs.documents import (
    DocumentReader,
    JobDirectoryError,
    JobFileInvalidError,
    json_from_bytes,
    read_document,
    write_document,
)
from site_agent.jobs.lines_file import read_lines_from

HEARTBEAT_FILE = "trainer.json"
CANCEL_FILE = "cancel"
RESTART_FILE = "restart"
ENDS_FILE = "ends.jsonl"
INSPECTIONS_FOLDER = "inspections"

JobNames = tuple[str, str]
"""Under which a job's folder lies in the jobs folder: its run's, or ``inspections``; and its own."""

BEAT_EVERY_S = 2.0
STALE_AFTER_S = 30.0
"""A heartbeat that is older says that there is no trainer."""

_MAX_HEARTBEAT_BYTES = 64 << 10
_MAX_LOOK_BYTES = 64 << 10
_MAX_JOBS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What a trainer says of itself. Safety: it is the trainer's word, and proves nothing.

    Attributes:
        life: another for every start of the trainer's program.
        n_beats: rises with every beat.
        jobs: the job folders that it works on now, as ``RUN/ROUND``.
    """

    life: str
    n_beats: int
    jobs: tuple[str, ...] = ()

    def to_document(self) -> dict[str, object]:
        """As it stands in the file."""
        return {"life": self.life, "n_beats": self.n_beats, "jobs": list(self.jobs)}


def names_of(jobs_dir: Path, job_dir: Path) -> JobNames:
    """The two names under which a job's folder lies in the jobs folder."""
    run, name = job_dir.relative_to(jobs_dir).parts
    return run, name


def is_of_a_round(name: str) -> bool:
    """Whether a folder, as ``RUN`` or ``RUN/ROUND``, is a round's, and not a dataset's that a command looks at."""
    return name.startswith("run-")


def write_heartbeat(jobs_dir: Path, heartbeat: Heartbeat) -> None:
    """Write ``trainer.json`` anew."""
    write_document(jobs_dir / HEARTBEAT_FILE, heartbeat.to_document())


def read_heartbeat(jobs_dir: Path) -> Heartbeat | None:
    """Read ``trainer.json``; None where there is none, or nothing that could be one."""
    try:
        document = read_document(jobs_dir / HEARTBEAT_FILE, _MAX_HEARTBEAT_BYTES)
        reader = DocumentReader(document, HEARTBEAT_FILE)
        jobs = document.get("jobs")
        if not isinstance(jobs, list) or len(jobs) > _MAX_JOBS or not all(isinstance(job, str) for job in jobs):
            return None
        return Heartbeat(life=reader.text("life")[:64], n_beats=reader.integer("n_beats"), jobs=tuple(jobs))
    except JobDirectoryError:
        return None


def is_trainer_alive(jobs_dir: Path, *, now_s: float | None = None) -> bool:
    """Whether the heartbeat is young, by its file's time; for a single look, as a health check takes it."""
    try:
        beat_at_s = (jobs_dir / HEARTBEAT_FILE).lstat().st_mtime
    except OSError:
        return False
    now_s = time.time() if now_s is None else now_s
    return abs(now_s - beat_at_s) < STALE_AFTER_S and read_heartbeat(jobs_dir) is not None


def append_end(job_dir: Path, exit_code: int) -> None:
    """Say that a life of the trainer ended without closing this job."""
    with (job_dir / ENDS_FILE).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"exit_code": exit_code}) + "\n")


def read_ends_from(job_dir: Path, offset: int) -> tuple[tuple[int, ...], int]:
    """The exit codes told from ``offset`` on, and where the next look begins.

    Raises:
        JobFileInvalidError: what stands in the file's place is none.
    """
    lines, beyond = read_lines_from(job_dir / ENDS_FILE, offset, _MAX_LOOK_BYTES)
    codes: list[int] = []
    for line in lines:
        try:
            codes.append(DocumentReader(json_from_bytes(line), ENDS_FILE).integer("exit_code"))
        except (ValueError, JobFileInvalidError):
            continue
    return tuple(codes), beyond
