"""The register of datasets: what was registered, by whom, with which digest, and what was withdrawn.

Reads no record. A dataset in use never changes: other content under the same name needs a withdrawal first, so that the
audit log tells the two apart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import Sha256Hex
from site_agent.audit.store import AuditLog
from site_agent.datasets.declaration import DatasetDeclaration
from site_agent.datasets.errors import (
    DatasetExistsError,
    DatasetExpiredError,
    DatasetFileError,
    DatasetUnknownError,
)
from site_agent.datasets.inspector import DataDescription, Inspection, Inspector
from site_agent.db.instants import instant_from_text, instant_text
from site_agent.db.models import DatasetRow
from site_agent.db.tx import SiteDb
from site_agent.jobs.record_schema import PATIENT_FIELD, RecordSchema, schema_from_document


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredDataset:
    """One entry of the register."""

    name: str
    path: Path
    format: str
    purposes: tuple[str, ...]
    description: str | None
    sha256: Sha256Hex
    n_records: int
    n_patients: int
    registered_at: datetime
    registered_by: str
    withdrawn_at: datetime | None
    schema: RecordSchema | None = None
    patient_field: str = PATIENT_FIELD
    legal_basis: str | None = None
    consent: str | None = None
    expires_on: date | None = None

    def is_expired(self, now: datetime) -> bool:
        """Whether the last day of its use is over, by this machine's local date."""
        return self.expires_on is not None and now.astimezone().date() > self.expires_on

    def data_file(self) -> DataDescription:
        """What the inspecting program is told of the file."""
        return DataDescription(path=self.path, format=self.format, patient_field=self.patient_field, schema=self.schema)

    @property
    def is_withdrawn(self) -> bool:
        """Whether the dataset may no longer be used."""
        return self.withdrawn_at is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCheck:
    """A registered dataset beside the file as it is now."""

    dataset: RegisteredDataset
    found: Inspection

    @property
    def is_unchanged(self) -> bool:
        """Whether the file still has the digest that was registered."""
        return self.found.sha256 == self.dataset.sha256


def register_dataset(
    db: SiteDb, audit: AuditLog, declaration: DatasetDeclaration, *, inspector: Inspector, actor: str, now: datetime
) -> RegisteredDataset:
    """Inspect a file and put it on the register; repeating it with the same file and declaration changes nothing.

    Raises:
        DatasetFileError: the file is missing, empty or malformed; the error names file, line and field of each fault.
        DatasetExpiredError: its last day is over already.
        InspectionFailedError: the file could not be inspected.
        DatasetExistsError: the name is in use for other content.
        SiteDatabaseError: nothing was recorded.
    """
    if declaration.expires_on is not None and now.astimezone().date() > declaration.expires_on:
        message = "the dataset's last day of use is over"
        advice = "Write a later day under 'expires', if its consent still holds; nothing was recorded."
        raise DatasetExpiredError(message, advice=advice, dataset=declaration.name)
    inspection = inspector.inspect(declaration.data_file())
    if inspection.n_records == 0:
        advice = "Write at least one record, then register the file again."
        raise DatasetFileError("the data file has no records", failure_code="data-empty", advice=advice)

    def write(session: Session) -> RegisteredDataset:
        existing = find_dataset(session, declaration.name)
        if existing is not None:
            if _is_same(existing, declaration, inspection):
                return existing
            message = "a dataset of this name is registered with another file, purpose or content"
            advice = f"Withdraw it first ('wardround-site datasets withdraw {declaration.name}'), or use another name."
            raise DatasetExistsError(message, advice=advice, dataset=declaration.name)
        row = _row(declaration, inspection, actor=actor, now=now)
        session.add(row)
        session.flush()
        audit.append(
            session,
            AuditKind.DATASET_REGISTERED,
            actor,
            dataset=row.name,
            sha256=row.sha256,
            n_records=row.n_records,
            n_patients=row.n_patients,
            purposes=", ".join(declaration.purposes),
            legal_basis=declaration.legal_basis,
            consent=declaration.consent,
            expires_on=row.expires_on,
        )
        return _dataset(row)

    return db.run_tx("register_dataset", write)


def find_dataset(session: Session, name: str) -> RegisteredDataset | None:
    """The dataset of this name that is in use; None where there is none, or it was withdrawn."""
    row = session.scalars(_in_use().where(DatasetRow.name == name)).one_or_none()
    return None if row is None else _dataset(row)


def list_datasets(session: Session, *, with_withdrawn: bool = False) -> tuple[RegisteredDataset, ...]:
    """The register, by name and then by age."""
    query = select(DatasetRow) if with_withdrawn else _in_use()
    return tuple(_dataset(row) for row in session.scalars(query.order_by(DatasetRow.name, DatasetRow.dataset_id)))


def check_dataset(db: SiteDb, audit: AuditLog, name: str, *, inspector: Inspector, actor: str) -> DatasetCheck:
    """Inspect every record of a registered dataset's file again, and record what was found.

    Raises:
        DatasetUnknownError: no such dataset is in use.
        DatasetFileError: the file is missing, empty or malformed now; the error names each fault by file, line and
            field.
        InspectionFailedError: the file could not be inspected.
        SiteDatabaseError: the outcome could not be recorded.
    """
    dataset = db.run_read("find_dataset", lambda session: find_dataset(session, name))
    if dataset is None:
        raise unknown_dataset(name)

    def record(outcome: str) -> None:
        facts = {"dataset": name, "sha256": dataset.sha256, "outcome": outcome}
        db.run_tx("check_dataset", lambda session: audit.append(session, AuditKind.DATASET_CHECKED, actor, **facts))

    try:
        found = inspector.inspect(dataset.data_file())
    except DatasetFileError as error:
        record(error.failure_code)
        raise
    check = DatasetCheck(dataset=dataset, found=found)
    record("unchanged" if check.is_unchanged else "changed")
    return check


def withdraw_dataset(db: SiteDb, audit: AuditLog, name: str, *, actor: str, now: datetime) -> RegisteredDataset:
    """Take a dataset out of use: no run may train on it from the next round on.

    Raises:
        DatasetUnknownError: no such dataset is in use.
        SiteDatabaseError: nothing was recorded.
    """
    return db.run_tx("withdraw_dataset", lambda session: withdraw_in(session, audit, name, actor=actor, now=now))


def withdraw_in(session: Session, audit: AuditLog, name: str, *, actor: str, now: datetime) -> RegisteredDataset:
    """``withdraw_dataset`` inside the caller's transaction. Raises DatasetUnknownError."""
    row = session.scalars(_in_use().where(DatasetRow.name == name)).one_or_none()
    if row is None:
        raise unknown_dataset(name)
    row.withdrawn_at = instant_text(now)
    session.flush()
    audit.append(session, AuditKind.DATASET_WITHDRAWN, actor, dataset=name, sha256=row.sha256)
    return _dataset(row)


def unknown_dataset(name: str) -> DatasetUnknownError:
    """The error for a name that is not on the register."""
    advice = "'wardround-site datasets list' shows what is registered."
    return DatasetUnknownError("no dataset of this name is registered", advice=advice, dataset=name[:80])


def _in_use() -> Select[DatasetRow]:
    return select(DatasetRow).where(DatasetRow.withdrawn_at.is_(None))


def _is_same(existing: RegisteredDataset, declaration: DatasetDeclaration, inspection: Inspection) -> bool:
    declared = (
        declaration.data_file(),
        declaration.purposes,
        declaration.legal_basis,
        declaration.consent,
        declaration.expires_on,
        inspection.sha256,
    )
    return declared == (
        existing.data_file(),
        existing.purposes,
        existing.legal_basis,
        existing.consent,
        existing.expires_on,
        existing.sha256,
    )


def _row(declaration: DatasetDeclaration, inspection: Inspection, *, actor: str, now: datetime) -> DatasetRow:
    return DatasetRow(
        name=declaration.name,
        path=str(declaration.path),
        format=declaration.format,
        purposes_json=json.dumps(list(declaration.purposes)),
        description=declaration.description,
        sha256=inspection.sha256,
        n_records=inspection.n_records,
        n_patients=inspection.n_patients,
        registered_at=instant_text(now),
        registered_by=actor,
        withdrawn_at=None,
        schema_json=None if declaration.schema is None else json.dumps(declaration.schema.to_document()),
        patient_field=declaration.patient_field,
        legal_basis=declaration.legal_basis,
        consent=declaration.consent,
        expires_on=None if declaration.expires_on is None else declaration.expires_on.isoformat(),
    )


def _dataset(row: DatasetRow) -> RegisteredDataset:
    return RegisteredDataset(
        name=row.name,
        path=Path(row.path),
        format=row.format,
        purposes=tuple(json.loads(row.purposes_json)),
        description=row.description,
        sha256=Sha256Hex(row.sha256),
        n_records=row.n_records,
        n_patients=row.n_patients,
        registered_at=instant_from_text(row.registered_at),
        registered_by=row.registered_by,
        withdrawn_at=None if row.withdrawn_at is None else instant_from_text(row.withdrawn_at),
        schema=None if row.schema_json is None else schema_from_document(json.loads(row.schema_json)),
        patient_field=row.patient_field or PATIENT_FIELD,
        legal_basis=row.legal_basis,
        consent=row.consent,
        expires_on=None if row.expires_on is None else date.fromisoformat(row.expires_on),
    )
