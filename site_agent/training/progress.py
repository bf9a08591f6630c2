"""What a trainer says while it works, and where it notices that it is to stop. Knows no torch."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from site_agent.jobs.job_dir import ProgressLine, ProgressState, append_progress, touch_progress

_log = logging.getLogger(__name__)

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_TOUCH_EVERY_S = 1.0


class TrainerStopped(BaseException):
    """The agent asked the trainer to end, or is gone. The job stays open, so that another trainer can do it.

    No error and no Exception: like KeyboardInterrupt, it passes whoever turns failures into results.
    """


def never_stops() -> bool:
    """Whether to stop: no."""
    return False


class ProgressReporter:
    """Appends to a job's ``progress.jsonl``. Safety: a loss is computed from data; the file stays at the site."""

    def __init__(self, job_dir: Path, *, should_stop: Callable[[], bool] = never_stops) -> None:
        """Keep where to write, and whom to ask whether to go on."""
        self._job_dir = job_dir
        self._should_stop = should_stop
        self._began: tuple[ProgressState, float] | None = None
        self._touched_at = 0.0

    def report(
        self,
        state: ProgressState,
        *,
        step: int,
        steps: int,
        n_records: int = 0,
        loss: float | None = None,
        is_resumed: bool = False,
    ) -> None:
        """Say where the job is.

        Args:
            state: what is being done.
            step: steps done.
            steps: of how many.
            n_records: records gone through since this state began.
            loss: mean loss a token, for this site's own eyes.
            is_resumed: ``step`` is where a checkpoint stood.

        Raises:
            TrainerStopped: the trainer is to end.
        """
        if self._should_stop():
            raise TrainerStopped
        now = time.monotonic()
        if self._began is None or self._began[0] is not state:
            self._began = (state, now)
        elapsed_s = now - self._began[1]
        line = ProgressLine(
            state=state,
            step=step,
            steps=steps,
            loss=loss,
            records_per_s=round(n_records / elapsed_s, 2) if n_records and elapsed_s > 0 else None,
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            is_resumed=is_resumed,
        )
        try:
            append_progress(self._job_dir, line)
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            # Hours of training are not given up for a line about them.
            _log.warning("no progress written: %s; the job goes on", error.strerror)

    def beat(self) -> None:
        """Say that the trainer is alive, though it has nothing new to say: a step may take longer than patience."""
        now = time.monotonic()
        if now - self._touched_at >= _TOUCH_EVERY_S:
            self._touched_at = now
            touch_progress(self._job_dir)
