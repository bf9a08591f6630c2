"""What a run's trainer keeps of this site's images between rounds, and when it goes. Blocks on the disk.

A trainer whose base has frozen towers computes an image's features once a run, in a folder of the run's spool: all that
it can write to. A feature says much of its image, so the folder goes when the run is over here, whatever ended it.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from fl_protocol.ids import RunId
from site_agent.jobs.held_folder import JobsFolderUnsafeError, held_folder, remove_without_following
from site_agent.jobs.job_dir import FEATURES_FOLDER


def forget_features(jobs_dir: Path, run_id: RunId) -> None:
    """Delete the features of a run that is over; again, it does nothing."""
    # Whatever a trainer put in the folder's place, nothing outside the run's spool is touched.
    with suppress(OSError, JobsFolderUnsafeError), held_folder(jobs_dir, run_id) as spool:
        remove_without_following(spool / FEATURES_FOLDER)


def forget_features_of_all_but(jobs_dir: Path, run_ids: Collection[RunId]) -> None:
    """Delete the features of all other runs."""
    for folder in jobs_dir.glob(f"run-*/{FEATURES_FOLDER}"):
        if folder.parent.name not in run_ids:
            forget_features(jobs_dir, RunId(folder.parent.name))
