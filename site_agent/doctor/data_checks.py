"""The checks of what the hospital gave: registered files of data, and folders of base models. No record is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fl_protocol.telemetry.findings import Check, CheckResult, Health, Outcome, found
from site_agent.datasets.registry import RegisteredDataset, list_datasets
from site_agent.db.tx import open_site_db
from site_agent.doctor.scene import Scene
from site_agent.jobs.machine_sight import MachineSight

FAMILY = "data and models"
_SOON = timedelta(days=14)

DATASETS_GOOD = Outcome(
    code="datasets-good", health=Health.OK, means="Every registered file is there and closed to others."
)
DATASETS_NONE = Outcome(
    code="datasets-none",
    health=Health.WARNING,
    means="No dataset is registered.",
    advice="Run 'wardround-site datasets register FILE.yaml'.",
)
DATASET_MISSING = Outcome(
    code="dataset-missing",
    health=Health.FAILED,
    means="A registered file is not there.",
    advice="Put it back, mount its folder, or withdraw the dataset ('wardround-site datasets withdraw NAME').",
)
DATASET_ELSEWHERE = Outcome(
    code="dataset-elsewhere",
    health=Health.NOTE,
    means="The file lies where only the trainer sees it; 'datasets check' has the trainer look.",
)
DATASET_UNREADABLE = Outcome(
    code="dataset-unreadable",
    health=Health.FAILED,
    means="The trainer's user may not read a registered file, or may not enter its folder.",
    advice="Give the trainer's user the right to read: a group of its own (chgrp; chmod 640, folders 750).",
)
DATASET_OPEN = Outcome(
    code="dataset-open",
    health=Health.WARNING,
    means="Every user of the machine may read a registered file.",
    advice="chmod o= on the file: its owner and the trainer's group need to read it, and nobody else.",
)
DATASET_WRITABLE = Outcome(
    code="dataset-writable",
    health=Health.WARNING,
    means="The trainer's user, or others, may write a registered file.",
    advice="Take the right to write away (chmod a-w; in containers mount the folder read-only): training only reads.",
)
DATASET_WRITTEN_SINCE = Outcome(
    code="dataset-written-since",
    health=Health.WARNING,
    means="A registered file was written after it was registered: if it changed, rounds on it fail (dataset-changed).",
    advice="Run 'wardround-site datasets check NAME'. If it changed, withdraw the dataset and register the file anew.",
)
DATASET_EXPIRES = Outcome(
    code="dataset-expires",
    health=Health.WARNING,
    means="The last day of a dataset's use is over, or near.",
    advice="If its consent still holds, register it anew with a later day under 'expires'; else withdraw it.",
)


def _datasets(scene: Scene) -> Iterator[CheckResult]:
    if not scene.is_enrolled or not scene.folder.database.exists():
        return
    db = open_site_db(scene.folder.database)
    try:
        datasets = [dataset for dataset in db.run_read("list_datasets", list_datasets) if not dataset.is_withdrawn]
    finally:
        db.close()
    if not datasets:
        yield found("datasets", DATASETS_NONE, "no dataset is registered")
        return
    is_here = not scene.settings().runner.is_trainer_elsewhere
    results = [
        result
        for dataset in datasets
        for result in judge_dataset(dataset, sight=scene.sight(), is_trainer_here=is_here, now=scene.clock())
    ]
    yield from results
    if not results:
        message = f"{len(datasets)} registered; 'datasets check NAME' compares their digests"
        yield found("datasets", DATASETS_GOOD, message, n_datasets=len(datasets))


def judge_dataset(
    dataset: RegisteredDataset, *, sight: MachineSight | None, is_trainer_here: bool, now: datetime
) -> Iterator[CheckResult]:
    """What is wrong with one registered file; nothing where all is well.

    Args:
        dataset: as it stands in the register.
        sight: the trainer's own word, for whose rights it has.
        is_trainer_here: whether the trainer sees the files that this process sees.
        now: for the last day of its use.
    """
    name = dataset.name
    if dataset.is_expired(now + _SOON):
        yield found("datasets", DATASET_EXPIRES, f"{name}: its last day of use is {dataset.expires_on}", dataset=name)
    try:
        status = dataset.path.stat()
    except PermissionError:
        yield found("datasets", DATASET_UNREADABLE, f"{name}: its folder may not be entered", dataset=name)
        return
    except OSError:
        if is_trainer_here:
            yield found("datasets", DATASET_MISSING, f"{name}: its file is not there", dataset=name)
        else:
            yield found("datasets", DATASET_ELSEWHERE, f"{name}: its file is not seen from the agent", dataset=name)
        return
    uid, gids = (os.geteuid(), frozenset({os.getegid(), *os.getgroups()})) if sight is None else _rights(sight)
    if not _may(status, stat.S_IROTH, uid=uid, gids=gids):
        yield found("datasets", DATASET_UNREADABLE, f"{name}: user {uid} may not read its file", dataset=name)
    if status.st_mode & stat.S_IROTH:
        yield found("datasets", DATASET_OPEN, f"{name}: mode {stat.S_IMODE(status.st_mode):04o}", dataset=name)
    if _is_written_by(status, dataset.path, uid=uid, gids=gids):
        message = f"{name}: mode {stat.S_IMODE(status.st_mode):04o}, and user {uid} may write its file"
        yield found("datasets", DATASET_WRITABLE, message, dataset=name)
    written_at = datetime.fromtimestamp(status.st_mtime, UTC)
    if written_at > dataset.registered_at:
        message = f"{name}: written {written_at:%Y-%m-%d %H:%M} UTC, registered {dataset.registered_at:%Y-%m-%d %H:%M}"
        yield found("datasets", DATASET_WRITTEN_SINCE, message, dataset=name)


def _rights(sight: MachineSight) -> tuple[int, frozenset[int]]:
    return sight.uid, frozenset(sight.gids)


def _may(status: os.stat_result, right_of_others: int, *, uid: int, gids: frozenset[int]) -> bool:
    """Whether a user has a right, by the class that the system judges it by: owner, else group, else others."""
    if uid == 0:
        return True
    if status.st_uid == uid:
        return bool(status.st_mode & right_of_others << 6)
    if status.st_gid in gids:
        return bool(status.st_mode & right_of_others << 3)
    return bool(status.st_mode & right_of_others)


def _is_written_by(status: os.stat_result, path: Path, *, uid: int, gids: frozenset[int]) -> bool:
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return False
    if status.st_mode & stat.S_IWOTH:
        return True
    # Root may write whatever the mode says, but for what is mounted read-only; its mode is judged as its owner's.
    if uid == 0:
        return bool(status.st_mode & (stat.S_IWUSR | stat.S_IWGRP))
    return _may(status, stat.S_IWOTH, uid=uid, gids=gids)


MODELS_GOOD = Outcome(code="models-good", health=Health.OK, means="The folder of every base model is there.")
MODELS_NONE = Outcome(
    code="models-none",
    health=Health.WARNING,
    means="site.yaml names no base model.",
    advice="Name one under base_models in site.yaml, with the folder where the trainer finds it.",
)
MODEL_MISSING = Outcome(
    code="model-missing",
    health=Health.FAILED,
    means="The folder of a base model is not there, or holds no safetensors.",
    advice="Correct base_models in site.yaml, or put the model's folder there (config.json and *.safetensors).",
)
MODEL_ELSEWHERE = Outcome(
    code="model-elsewhere", health=Health.NOTE, means="The folder lies where only the trainer sees it."
)


def _base_models(scene: Scene) -> Iterator[CheckResult]:
    if not scene.is_enrolled and not scene.has_settings:
        return
    settings = scene.settings()
    if not settings.base_models:
        yield found("base models", MODELS_NONE, "no base model is configured")
        return
    is_here = not settings.runner.is_trainer_elsewhere
    all_here = True
    for name in settings.base_models:
        path = settings.base_model_path(name)
        if path is not None and path.is_dir() and any(path.glob("*.safetensors")):
            continue
        all_here = False
        if is_here or (path is not None and path.is_dir()):
            yield found("base models", MODEL_MISSING, f"{name}: no safetensors in {path}", base_model=name)
        else:
            yield found("base models", MODEL_ELSEWHERE, f"{name}: {path} is not seen from the agent", base_model=name)
    if all_here:
        yield found("base models", MODELS_GOOD, f"{len(settings.base_models)} configured")


CHECKS = (
    Check(
        name="datasets",
        family=FAMILY,
        looks_at=(
            "each registered file: there, readable by the trainer's user, not writable, closed to others, as registered"
        ),
        outcomes=(
            DATASETS_GOOD,
            DATASETS_NONE,
            DATASET_MISSING,
            DATASET_ELSEWHERE,
            DATASET_UNREADABLE,
            DATASET_OPEN,
            DATASET_WRITABLE,
            DATASET_WRITTEN_SINCE,
            DATASET_EXPIRES,
        ),
        run=_datasets,
    ),
    Check(
        name="base models",
        family=FAMILY,
        looks_at="the folder of each base model of site.yaml",
        outcomes=(MODELS_GOOD, MODELS_NONE, MODEL_MISSING, MODEL_ELSEWHERE),
        run=_base_models,
    ),
)
