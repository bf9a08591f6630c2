"""The job folder of a round: filled before the trainer starts, read when it is done, deleted when the round is over.

It is the only place on the disk where the plain update lies. What a local rule keeps between rounds is carried into it
and out of it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import structlog

from fl_protocol.codec.fixed_point import encode_payload
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import RunId, SiteId
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import RoundContext
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.seeds import training_seed
from fl_protocol.tensors.safetensors_io import tensors_from_bytes
from site_agent.errors import JobFailedError
from site_agent.jobs.documents import read_file, write_file_parts
from site_agent.jobs.held_folder import (
    JobsFolderUnsafeError,
    held_folder,
    remove_without_following,
    unsafe_errors,
)
from site_agent.jobs.job_dir import (
    CHECKPOINT_FOLDER,
    GLOBAL_FILE,
    JOB_FILE,
    LAYOUT_FILE,
    NEXT_PRIVATE_FILE,
    PAYLOAD_FILE,
    PRIVATE_FILE,
    RESULT_FILE,
    SITE_FOLDER,
    BaseModelFolder,
    DataFile,
    JobDirectoryError,
    JobFailure,
    JobFileMissingError,
    JobKind,
    JobResult,
    JobSpec,
    read_job,
    read_result,
    write_file,
)
from site_agent.jobs.runner import said_by_trainer
from site_agent.state.disk_space import disk_errors
from site_agent.state.kept_features import forget_features, forget_features_of_all_but
from site_agent.state.private_states import PrivateStates
from site_agent.supervision.admission import AdmittedRound
from site_agent.supervision.seams import JobOptions

log = structlog.get_logger(__name__)

MANIFEST_FILE = "manifest.bin"
_MAX_MANIFEST_BYTES = 4 << 20
_MAX_HEADER_BYTES = 4 << 20
_JOB_FOLDER = re.compile(r"[0-9]+\.[0-9]+")

_MAX_KEPT_BYTES = 256 << 20
"""An encoded payload is kept in memory until it is masked, unless it is larger: then it is encoded again."""
_LEAVING = ".leaving"
"""Where a job folder goes to be deleted: outside every run's spool."""

_KINDS = {RoundKind.TRAIN: JobKind.TRAIN, RoundKind.EVALUATE: JobKind.EVALUATE}


class JobDesk:
    """Job folders of this site. All methods block on the disk: call them in a thread."""

    def __init__(self, options: JobOptions, site_id: SiteId) -> None:
        """Keep the folders where the options say."""
        self._options = options
        self._site_id = site_id
        self._encoded: tuple[RoundContext, RingVector] | None = None
        self._private = PrivateStates(options.private_states_dir)

    def run_folder(self, round_context: RoundContext) -> Path:
        """The folder of a run: the spool of its warm trainer."""
        return self._options.jobs_dir / round_context.run_id

    def folder(self, round_context: RoundContext) -> Path:
        """The job folder of a round."""
        return self._options.jobs_dir.joinpath(*self._names(round_context))

    def prepare(self, admitted: AdmittedRound, state: PublicState) -> JobSpec:
        """Fill the folder with all but ``job.json``; ``state`` is what the round starts from.

        Where an earlier start left the very same job in it (the same M0, seed, data and base model), its checkpoint
        stays, and its payload if it was closed with one: the trainer would make the same bytes again. Anything else
        that is there is removed first.

        Raises:
            SiteDiskFullError: no room.
            JobsFolderUnsafeError: a trainer put something into the folder that keeps it from being filled.
        """
        job, names = self._job(admitted), self._names(admitted.round)
        with suppress(FileNotFoundError, PermissionError, JobsFolderUnsafeError), self._held(admitted.round) as folder:
            kept = _worth_keeping(folder) if self._is_left_of(folder, admitted, job) else frozenset()
            if kept:
                _delete_all_but(folder, kept)
                return self._fill(admitted, state, job)
        self._delete_folder(names)
        return self._fill(admitted, state, job)

    def _fill(self, admitted: AdmittedRound, state: PublicState, job: JobSpec) -> JobSpec:
        jobs_dir, names = self._options.jobs_dir, self._names(admitted.round)
        private = self._private.current(admitted.round.run_id)
        with unsafe_errors(), disk_errors(jobs_dir), held_folder(jobs_dir, *names, make=True) as folder:
            with held_folder(jobs_dir, *names, SITE_FOLDER, make=True) as site:
                remove_without_following(site / PRIVATE_FILE)
                if private is not None:
                    write_file(site / PRIVATE_FILE, private)
            write_file(folder / MANIFEST_FILE, admitted.signed.encode())
            write_file(folder / LAYOUT_FILE, admitted.run.layout_json)
            write_file_parts(folder / GLOBAL_FILE, state.iter_bytes())
        return job

    def _job(self, admitted: AdmittedRound) -> JobSpec:
        spec, round_context = admitted.run.spec, admitted.round
        return JobSpec(
            job_id=self.folder(round_context).name,
            kind=_KINDS[admitted.manifest.kind],
            run_id=round_context.run_id,
            round_index=round_context.round_index,
            round_attempt=round_context.round_attempt,
            run_spec=spec.to_document(),
            base_model=BaseModelFolder(path=str(admitted.base_model_dir), sha256=spec.base_model.sha256),
            data=DataFile(
                path=str(admitted.dataset.path),
                format=admitted.dataset.format,
                sha256=admitted.dataset.sha256,
                patient_field=admitted.dataset.patient_field,
            ),
            seed=training_seed(
                run_seed=spec.local.seed,
                site_id=self._site_id,
                round_index=round_context.round_index,
                round_attempt=round_context.round_attempt,
            ),
            threads=self._options.threads,
            device=self._options.device,
            timeout_s=self._options.timeout_s,
        )

    @staticmethod
    def _is_left_of(folder: Path, admitted: AdmittedRound, job: JobSpec) -> bool:
        """Whether an earlier start of this site's agent opened the same job in the folder."""
        try:
            manifest, left = read_file(folder / MANIFEST_FILE, _MAX_MANIFEST_BYTES), read_job(folder)
        except (OSError, JobDirectoryError):
            return False
        # How it is computed may have been set anew since; whether that changes the numbers, the trainer knows.
        was = replace(left, threads=job.threads, device=job.device, timeout_s=job.timeout_s)
        return manifest == admitted.signed.encode() and was == job

    def read_manifest(self, round_context: RoundContext) -> SignedBody | None:
        """The M0 that the folder was filled for; None where there is none, or nothing that could be one."""
        try:
            with self._held(round_context) as folder:
                return SignedBody.decode(read_file(folder / MANIFEST_FILE, _MAX_MANIFEST_BYTES))
        except (FileNotFoundError, JobDirectoryError, JobsFolderUnsafeError):
            return None

    def has_payload(self, round_context: RoundContext) -> bool:
        """Whether the trainer closed its job with a payload."""
        with suppress(OSError, JobsFolderUnsafeError), self._held(round_context) as folder:
            return (folder / RESULT_FILE).exists() and (folder / PAYLOAD_FILE).exists()
        return False

    def prove(self, admitted: AdmittedRound) -> None:
        """Encode the payload, so that READY is only said of one that can be summed; it is kept for ``encode``.

        What the local rule leaves at this site is brought to safety first: READY may make it the next round's.

        Raises: as ``encode``; and SiteDiskFullError.
        """
        vector = self.encode(admitted)
        # Four bytes a weight, and a header.
        max_bytes = 4 * admitted.run.layout.n_parameters + _MAX_HEADER_BYTES
        jobs_dir, names = self._options.jobs_dir, self._names(admitted.round)
        with suppress(JobFileMissingError), held_folder(jobs_dir, *names, SITE_FOLDER) as site:
            self._private.offer(admitted.round, read_file(site / NEXT_PRIVATE_FILE, max_bytes))
        self._encoded = (admitted.round, vector) if vector.n_bytes <= _MAX_KEPT_BYTES else None

    def encode(self, admitted: AdmittedRound) -> RingVector:
        """The trainer's payload, weighed and encoded; it is masked in place by whoever gets it.

        Raises:
            JobFailedError: there is no payload, the data changed, or there is too little of it.
            ProtocolError: the payload is not what the algorithm needs, not finite, or over a bound.
        """
        kept, self._encoded = self._encoded, None
        if kept is not None and kept[0] == admitted.round:
            return kept[1]
        result, payload = self._outcome(admitted)
        _check_data(result, admitted)
        raw = tensors_from_bytes(payload, is_shared=True)
        run = admitted.run
        kind = admitted.manifest.kind
        values = run.algorithm.weigh(raw, n_records=result.records, spec=run.spec, layout=run.layout, kind=kind)
        return encode_payload(values, admitted.layout)

    def _outcome(self, admitted: AdmittedRound) -> tuple[JobResult, bytes]:
        """How the trainer closed the job, and its payload, which is no larger than it may be."""
        # Eight bytes an element, whatever it is before it is encoded, and a header.
        max_bytes = 8 * max(admitted.layout.n_bytes // 4, admitted.run.layout.n_parameters) + _MAX_HEADER_BYTES
        try:
            with self._held(admitted.round) as folder:
                result = read_result(folder)
                if isinstance(result, JobFailure):
                    raise said_by_trainer(result)
                if result is not None:
                    return result, read_file(folder / PAYLOAD_FILE, max_bytes)
        except (FileNotFoundError, JobFileMissingError):
            pass
        raise JobFailedError("the payload is not in the job folder", failure_code="payload-lost")

    def delete(self, round_context: RoundContext) -> None:
        """Delete the folder, and with it the plain update."""
        self._encoded = None
        self._delete_folder(self._names(round_context))

    def forget(self, run_id: RunId) -> None:
        """Delete what a run kept at this site, of its local rule and of images: the run is over here."""
        self._private.forget(run_id)
        forget_features(self._options.jobs_dir, run_id)

    def forget_all_but(self, run_ids: Collection[RunId]) -> None:
        """Delete what all other runs kept."""
        self._private.forget_all_but(run_ids)
        forget_features_of_all_but(self._options.jobs_dir, run_ids)

    def delete_all_but(self, kept: Collection[RoundContext]) -> None:
        """Delete the job folders of all other rounds."""
        kept_names = {self._names(round_context) for round_context in kept}
        for names in _job_folders(self._options.jobs_dir):
            if names not in kept_names:
                self._delete_folder(names)
        self._remove(self._options.jobs_dir / _LEAVING)

    def _names(self, round_context: RoundContext) -> tuple[str, str]:
        return round_context.run_id, f"{round_context.round_index}.{round_context.round_attempt}"

    def _held(self, round_context: RoundContext) -> AbstractContextManager[Path]:
        """The job folder, for as long as it is used, whatever a trainer makes of its name meanwhile."""
        return held_folder(self._options.jobs_dir, *self._names(round_context))

    def _delete_folder(self, names: tuple[str, str]) -> None:
        """Delete a job folder under the eyes of a warm trainer, which takes ``job.json`` without a result for a job.

        First nothing is a job any more, then the folder leaves the spool whole, then it is deleted. A link in its place
        leaves and is deleted itself; what it leads to is not touched.
        """
        jobs_dir, (run, name) = self._options.jobs_dir, names
        with suppress(OSError, JobsFolderUnsafeError), held_folder(jobs_dir, *names) as folder:
            remove_without_following(folder / JOB_FILE)
        try:
            with held_folder(jobs_dir, run) as spool, self._held_leaving() as leaving:
                away = leaving / f"{run}.{name}.{secrets.token_hex(4)}"
                (spool / name).rename(away)
                self._remove(away)
        except FileNotFoundError:
            return
        except JobsFolderUnsafeError as error:
            # The run's own folder is a link: nothing of a round can lie in it.
            log.warning("jobs_folder_unsafe", run_id=run, cause=error.message)
            self._remove(jobs_dir / run)
        except OSError:
            # A trainer put a folder of its own there, or in the place of the one that it was to leave for.
            with suppress(OSError, JobsFolderUnsafeError), held_folder(jobs_dir, run) as spool:
                self._remove(spool / name)

    def _held_leaving(self) -> AbstractContextManager[Path]:
        leaving = self._options.jobs_dir / _LEAVING
        if leaving.is_symlink() or leaving.is_file():
            self._remove(leaving)
        return held_folder(self._options.jobs_dir, _LEAVING, make=True)

    @staticmethod
    def _remove(path: Path) -> None:
        """Delete what left the spools. What cannot be deleted is tried again at the next start, and is told of."""
        try:
            remove_without_following(path)
        except OSError as error:
            log.warning("job_folder_not_deleted", reason=error.strerror)


def _job_folders(jobs_dir: Path) -> list[tuple[str, str]]:
    """The names of all job folders, and of whatever else stands where one belongs."""
    found: list[tuple[str, str]] = []
    if not jobs_dir.exists():
        return found
    for run in sorted(entry.name for entry in jobs_dir.iterdir() if entry.name.startswith("run-")):
        try:
            with held_folder(jobs_dir, run) as spool:
                found += [(run, entry.name) for entry in spool.iterdir() if _JOB_FOLDER.fullmatch(entry.name)]
        except (FileNotFoundError, JobsFolderUnsafeError):
            continue
    return found


def _worth_keeping(folder: Path) -> frozenset[str]:
    """What of a job that was cut short saves doing it again."""
    try:
        is_done = isinstance(read_result(folder), JobResult) and (folder / PAYLOAD_FILE).exists()
    except JobDirectoryError:
        is_done = False
    if is_done:
        return frozenset({PAYLOAD_FILE, RESULT_FILE, SITE_FOLDER})
    return frozenset({CHECKPOINT_FOLDER}) if (folder / CHECKPOINT_FOLDER).exists() else frozenset()


def _delete_all_but(folder: Path, kept: frozenset[str]) -> None:
    # First nothing is a job any more, for whoever watches the spool.
    remove_without_following(folder / JOB_FILE)
    for path in folder.iterdir():
        if path.name not in kept:
            remove_without_following(path)


def payload_digest(vector: RingVector, run_id: RunId) -> str:
    """The name of an encoded payload, before it is masked.

    One of nothing but zeros (of a round that evaluates nothing, or of a site that holds nothing out) is the same in
    every run, and no two sums say anything of it. It is told apart by its run, or a site could end one run only, ever.
    """
    is_nothing = not (np.any(vector.ring32) or np.any(vector.ring64))
    of_run = run_id.encode() if is_nothing else b""
    return hashlib.sha256(b"wardround/payload/" + vector.sha256() + of_run).hexdigest()


def _check_data(result: JobResult, admitted: AdmittedRound) -> None:
    if result.sha256 != admitted.dataset.sha256:
        message = "the data file changed since it was registered; register it again"
        raise JobFailedError(message, failure_code="dataset-changed")
    needed = admitted.run.spec.data
    if result.records < needed.min_records or result.patients < needed.min_patients:
        message = "the dataset has fewer records or patients than the run demands"
        raise JobFailedError(message, failure_code="too-few-records")
