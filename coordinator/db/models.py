"""All tables, gathered: whoever imports this has every one that a foreign key or a migration asks for.

One word a thing, the same as in proto, REST and log; docs/data-model names the owner of each.

Invariant: nothing here holds an update, a loss, a count or a norm of one site. What comes from one site is either a
signed message of the secure sum, a masked vector's digest, or the state of its participation.
"""

from __future__ import annotations

from coordinator.db.audit_tables import AuditCheckpoint, AuditRow, AuditTip
from coordinator.db.declarative import Base
from coordinator.db.identity_tables import Certificate, EnrolmentCode, Site, SiteLogHead, SiteStatementRow
from coordinator.db.release_tables import (
    DatasetWithdrawal,
    Release,
    ReleaseFile,
    ReleaseMark,
    ReleaseParent,
    ReleaseSignature,
    SigningPassphrase,
)
from coordinator.db.round_tables import Exchange, ExchangeMessage, Participation, Round, Upload
from coordinator.db.run_tables import Approval, Event, Lease, OutboxEntry, Run
from coordinator.db.upkeep_tables import CommitMarker, CoordinatorEpoch, EpochHead, OrphanBlob, SchemaFloor
from coordinator.db.user_tables import IdempotencyKey, RoleGrant, Token, User

__all__ = [
    "Approval",
    "AuditCheckpoint",
    "AuditRow",
    "AuditTip",
    "Base",
    "Certificate",
    "CommitMarker",
    "CoordinatorEpoch",
    "DatasetWithdrawal",
    "EnrolmentCode",
    "EpochHead",
    "Event",
    "Exchange",
    "ExchangeMessage",
    "IdempotencyKey",
    "Lease",
    "OrphanBlob",
    "OutboxEntry",
    "Participation",
    "Release",
    "ReleaseFile",
    "ReleaseMark",
    "ReleaseParent",
    "ReleaseSignature",
    "RoleGrant",
    "Round",
    "Run",
    "SchemaFloor",
    "SigningPassphrase",
    "Site",
    "SiteLogHead",
    "SiteStatementRow",
    "Token",
    "Upload",
    "User",
]
