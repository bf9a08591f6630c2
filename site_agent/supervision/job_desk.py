"""The job folder of a round: filled before the trainer starts, read when it is done, deleted when the round is over.

It is the only place on the disk where the plain update lies. What a local rule keeps between rounds is carried into it
and out of it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

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
from site_agent.jobs.documents import write_file_parts
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
    JobKind,
    JobResult,
    JobSpec,
    read_job,
    read_result,
    write_file,
)
from site_agent.state.kept_features import forget_features, forget_features_of_all_but
from site_agent.state.private_files import make_private_folder, write_private_file
from site_agent.state.private_states import PrivateStates
from site_agent.supervision.admission import AdmittedRound
from site_agent.supervision.seams import JobOptions

MANIFEST_FILE = "manifest.bin"

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
        return self.run_folder(round_context) / f"{round_context.round_index}.{round_context.round_attempt}"

    def prepare(self, admitted: AdmittedRound, state: PublicState) -> JobSpec:
        """Fill the folder with all but ``job.json``; ``state`` is what the round starts from.

        Where an earlier start left the very same job in it (the same M0, seed, data and base model), its checkpoint
        stays, and its payload if it was closed with one: the trainer would make the same bytes again. Anything else
        that is there is removed first.
        """
        folder, job = self.folder(admitted.round), self._job(admitted)
        kept = _worth_keeping(folder) if self._is_left_of(folder, admitted, job) else frozenset()
        if kept:
            _delete_all_but(folder, kept)
        else:
            self._delete_folder(folder)
        make_private_folder(folder)
        make_private_folder(folder / SITE_FOLDER)
        private = self._private.current(admitted.round.run_id)
        if private is None:
            (folder / SITE_FOLDER / PRIVATE_FILE).unlink(missing_ok=True)
        else:
            write_private_file(folder / SITE_FOLDER / PRIVATE_FILE, [private])
        write_private_file(folder / MANIFEST_FILE, [admitted.signed.encode()])
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
            manifest, left = (folder / MANIFEST_FILE).read_bytes(), read_job(folder)
        except (OSError, JobDirectoryError):
            return False
        # How it is computed may have been set anew since; whether that changes the numbers, the trainer knows.
        was = replace(left, threads=job.threads, device=job.device, timeout_s=job.timeout_s)
        return manifest == admitted.signed.encode() and was == job

    def read_manifest(self, round_context: RoundContext) -> SignedBody | None:
        """The M0 that the folder was filled for; None where there is no folder."""
        try:
            return SignedBody.decode((self.folder(round_context) / MANIFEST_FILE).read_bytes())
        except FileNotFoundError:
            return None

    def has_payload(self, round_context: RoundContext) -> bool:
        """Whether the trainer closed its job with a payload."""
        folder = self.folder(round_context)
        return (folder / RESULT_FILE).exists() and (folder / PAYLOAD_FILE).exists()

    def prove(self, admitted: AdmittedRound) -> None:
        """Encode the payload, so that READY is only said of one that can be summed; it is kept for ``encode``.

        What the local rule leaves at this site is brought to safety first: READY may make it the next round's.

        Raises: as ``encode``; and SiteDiskFullError.
        """
        vector = self.encode(admitted)
        left = self.folder(admitted.round) / SITE_FOLDER / NEXT_PRIVATE_FILE
        if left.exists():
            self._private.offer(admitted.round, left.read_bytes())
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
        folder = self.folder(admitted.round)
        result = read_result(folder)
        if isinstance(result, JobFailure):
            raise JobFailedError(result.message, failure_code=result.code, advice=result.advice)
        if result is None or not (folder / PAYLOAD_FILE).exists():
            raise JobFailedError("the payload is not in the job folder", failure_code="payload-lost")
        _check_data(result, admitted)
        raw = tensors_from_bytes((folder / PAYLOAD_FILE).read_bytes(), is_shared=True)
        run = admitted.run
        kind = admitted.manifest.kind
        values = run.algorithm.weigh(raw, n_records=result.records, spec=run.spec, layout=run.layout, kind=kind)
        return encode_payload(values, admitted.layout)

    def delete(self, round_context: RoundContext) -> None:
        """Delete the folder, and with it the plain update."""
        self._encoded = None
        self._delete_folder(self.folder(round_context))

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
        folders = {self.folder(round_context) for round_context in kept}
        for job in self._options.jobs_dir.glob("run-*/*.*/" + MANIFEST_FILE):
            if job.parent not in folders:
                self._delete_folder(job.parent)
        shutil.rmtree(self._options.jobs_dir / _LEAVING, ignore_errors=True)

    def _delete_folder(self, folder: Path) -> None:
        """Delete a job folder under the eyes of a warm trainer, which takes ``job.json`` without a result for a job.

        First nothing is a job any more, then the folder leaves the spool whole, then it is deleted.
        """
        if not folder.exists():
            return
        (folder / JOB_FILE).unlink(missing_ok=True)
        leaving = self._options.jobs_dir / _LEAVING / f"{folder.parent.name}.{folder.name}"
        shutil.rmtree(leaving, ignore_errors=True)
        make_private_folder(leaving.parent)
        folder.rename(leaving)
        shutil.rmtree(leaving)


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
    (folder / JOB_FILE).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name in kept:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def payload_digest(vector: RingVector) -> str:
    """The name of an encoded payload, before it is masked."""
    return hashlib.sha256(b"wardround/payload/" + vector.sha256()).hexdigest()


def _check_data(result: JobResult, admitted: AdmittedRound) -> None:
    if result.sha256 != admitted.dataset.sha256:
        message = "the data file changed since it was registered; register it again"
        raise JobFailedError(message, failure_code="dataset-changed")
    needed = admitted.run.spec.data
    if result.records < needed.min_records or result.patients < needed.min_patients:
        message = "the dataset has fewer records or patients than the run demands"
        raise JobFailedError(message, failure_code="too-few-records")
