"""``progress.jsonl`` of a job directory: what the trainer says while it works, a line at a time. It is no evidence.

Lines are only ever added, over all lives of a job's trainer. Safety: a line's loss is computed from data; the file
stays at the site, and of its lines only state, step and steps are told further.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from site_agent.jobs.documents import DocumentReader, JobFileInvalidError, json_from_bytes, read_member
from site_agent.jobs.lines_file import read_lines_from

PROGRESS_FILE = "progress.jsonl"

_MAX_LOOK_BYTES = 1 << 20
_MAX_STEPS = 2**31


class ProgressState(StrEnum):
    """What a trainer is doing."""

    LOADING = "loading"
    EVALUATING = "evaluating"
    TRAINING = "training"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressLine:
    """One line of ``progress.jsonl``. Safety: ``loss`` is computed from data and stays at the site.

    Attributes:
        is_resumed: the trainer that wrote it goes on from a checkpoint at ``step``.
    """

    state: ProgressState
    step: int
    steps: int
    at: str
    loss: float | None = None
    records_per_s: float | None = None
    is_resumed: bool = False

    def to_document(self) -> dict[str, object]:
        """The document that the line holds."""
        return {
            "state": self.state.value,
            "step": self.step,
            "steps": self.steps,
            "loss": self.loss,
            "records_per_s": self.records_per_s,
            "at": self.at,
            **({"is_resumed": True} if self.is_resumed else {}),
        }


def append_progress(job_dir: Path, line: ProgressLine) -> None:
    """Append one line to ``progress.jsonl``; a reader meanwhile sees whole lines or ignores the last."""
    text = json.dumps(line.to_document(), allow_nan=False) + "\n"
    with (job_dir / PROGRESS_FILE).open("a", encoding="utf-8") as stream:
        stream.write(text)


def mend_progress(job_dir: Path) -> None:
    """End the line that a trainer which died was writing, so that the next one begins its own."""
    with contextlib.suppress(FileNotFoundError), (job_dir / PROGRESS_FILE).open("r+b") as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            return
        stream.seek(-1, os.SEEK_END)
        if stream.read(1) != b"\n":
            stream.write(b"\n")


def touch_progress(job_dir: Path) -> None:
    """Say that the trainer is alive within a step. Nothing happens where there is no line yet."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(job_dir / PROGRESS_FILE)


def read_progress(job_dir: Path) -> tuple[ProgressLine, ...]:
    """Every whole line written so far; a line still being written, or damaged, is left out: progress is no evidence."""
    lines: list[ProgressLine] = []
    offset, is_more = 0, True
    while is_more:
        found, beyond = read_progress_from(job_dir, offset)
        lines += found
        offset, is_more = beyond, beyond > offset
    return tuple(lines)


def read_progress_from(job_dir: Path, offset: int) -> tuple[tuple[ProgressLine, ...], int]:
    """The whole lines from ``offset`` on, a mebibyte at most, and where the next look begins.

    Raises:
        JobFileInvalidError: what stands in the file's place is none.
    """
    lines, beyond = read_lines_from(job_dir / PROGRESS_FILE, offset, _MAX_LOOK_BYTES)
    return tuple(_progress_lines(lines)), beyond


def _progress_lines(lines: Iterable[bytes]) -> Iterable[ProgressLine]:
    for content in lines:
        try:
            reader = DocumentReader(json_from_bytes(content), PROGRESS_FILE)
            line = ProgressLine(
                state=read_member(ProgressState, reader.text("state"), field_name="state"),
                step=reader.integer("step"),
                steps=reader.integer("steps"),
                loss=reader.optional_number("loss"),
                records_per_s=reader.optional_number("records_per_s"),
                at=reader.text("at"),
                is_resumed=reader.is_set("is_resumed"),
            )
        except (ValueError, JobFileInvalidError):
            continue
        if 0 <= line.step < _MAX_STEPS and 0 <= line.steps < _MAX_STEPS:
            yield line
