"""What goes over the wire of REST, as pydantic models; they are also the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints

from coordinator.services.permissions import Role

T = TypeVar("T")
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Answer(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class ListAnswer(_Answer, Generic[T]):
    """A page of a list."""

    items: list[T]
    next_cursor: str | None = None


class Problem(BaseModel):
    """A refusal or a failure (RFC 9457). Further members are facts about it, such as ``retry_after_s``."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    code: str
    detail: str


class VersionAnswer(_Answer):
    """Which program answers."""

    version: str
    api: str = "v1"


class HealthAnswer(_Answer):
    """The process lives."""

    status: str = "ok"


class ReadyAnswer(_Answer):
    """The process works."""

    status: str = "ready"
    checks: dict[str, bool]


class Me(_Answer):
    """Who the token belongs to."""

    user_id: str
    name: str
    roles: list[str]
    token_id: str
    scopes: list[str] | None


class Site(_Answer):
    """A site."""

    site_id: str
    state: str
    reason: str | None
    signing_key_sha256: str | None
    agent_version: str | None
    created_at: datetime
    enrolled_at: datetime | None
    last_seen_at: datetime | None


class InviteRequest(_Request):
    """A new site's name."""

    name: Annotated[str, Field(examples=["st-mary"])]


class InviteAnswer(_Answer):
    """What the admin hands to the site, out of band. The code is shown this once."""

    site: Site
    code: str
    enrolment_address: str
    root_fingerprint: str
    expires_at: datetime
    command: str


class ReasonRequest(_Request):
    """Why."""

    reason: Reason


class OptionalReasonRequest(_Request):
    """Why, where anybody wants to say it."""

    reason: Reason | None = None


class Blob(_Answer):
    """A stored blob."""

    sha256: str
    size: int


class CreateRunRequest(_Request):
    """A draft RunSpec and the blobs of its initial adapter."""

    run_spec: dict[str, object]
    layout_blob_sha256: Sha256
    initial_blob_sha256: Sha256


class Approval(_Answer):
    """A site's word on a run; a yes holds until ``expires_at``, where it has one."""

    site_id: str
    decision: str
    at: datetime
    expires_at: datetime | None


class Run(_Answer):
    """A run."""

    run_id: str
    name: str
    state: str
    reason: str | None
    waits_for: str
    waiting_for: str
    run_spec_sha256: str
    run_spec: dict[str, object]
    rounds_total: int
    rounds_committed: int
    approvals: list[Approval]
    releases: list[str]
    created_by: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Participation(_Answer):
    """How far one site is: nothing computed from its data."""

    site_id: str
    state: str
    reason: str | None
    activity: str | None
    step: int | None
    steps: int | None
    bytes_up: int
    bytes_down: int


class Exchange(_Answer):
    """The latest attempt at a round's secure sum."""

    state: str
    exchange_attempt: int
    reason: str | None


class Report(_Answer):
    """What the sums of a round say."""

    model_config = ConfigDict(extra="ignore")

    train_loss: float | None = None
    eval_loss: float | None = None
    n_records: int | None = None
    n_eval_records: int | None = None
    n_clipped: int | None = None
    update_norm: float | None = None
    metrics: dict[str, float] | None = None


class Round(_Answer):
    """One attempt at a round."""

    round_index: int
    round_attempt: int
    kind: str
    state: str
    reason: str | None
    opened_at: datetime
    committed_at: datetime | None
    seconds: float | None
    counted_sites: list[str]
    report: Report | None
    bytes_up: int
    bytes_down: int
    participations: list[Participation]
    exchange: Exchange | None


class RoundMetrics(Report):
    """A committed round's figures."""

    round_index: int
    kind: str
    state: str
    seconds: float | None
    bytes_up: int
    bytes_down: int


class Metrics(_Answer):
    """A run's figures. Round r evaluates the adapter that it received."""

    run_id: str
    rounds: list[RoundMetrics]
    eval_loss_before: float | None
    eval_loss_after: float | None


class ReleaseFile(_Answer):
    """A file of the release folder."""

    path: str
    sha256: str
    n_bytes: int


class ReleaseSignature(_Answer):
    """Who signed a release, in which role, and what that means."""

    user: str
    role: str
    meaning: str
    at: datetime


class ReleaseMark(_Answer):
    """What became of something that a release was made from."""

    kind: str
    cause: str
    reason: str
    at: datetime


class Release(_Answer):
    """An adapter on its way out, where it came from, and what became of that."""

    release_id: str
    run_id: str
    state: str
    manifest_sha256: str
    manifest: dict[str, object]
    files: list[ReleaseFile]
    created_at: datetime
    approved_by: str | None
    approved_meaning: str | None
    approved_at: datetime | None
    published_at: datetime | None
    withdrawn_by: str | None
    withdrawn_reason: str | None
    withdrawn_at: datetime | None
    signatures: list[ReleaseSignature]
    marks: list[ReleaseMark]
    parents: list[str]
    descendants: list[str]


class ApproveReleaseRequest(_Request):
    """One person's signature: what it means, over which manifest, in which role; and who they are, shown once more."""

    meaning: Reason
    manifest_sha256: Sha256
    role: Role | None = None
    passphrase: SecretStr | None = Field(default=None, max_length=256)
    fresh_token: SecretStr | None = Field(default=None, max_length=8192)


class SetPassphraseRequest(_Request):
    """A new signing passphrase, and the present one where there is one."""

    passphrase: SecretStr = Field(min_length=12, max_length=256)
    current_passphrase: SecretStr | None = Field(default=None, max_length=256)


class Done(_Answer):
    """It is done, or was before."""

    done: bool = True


class PassphraseAnswer(_Answer):
    """Since when one's signing passphrase is what it is."""

    set_at: datetime


class Keys(_Answer):
    """The public keys whose signatures stand in releases, receipts and checkpoints."""

    release_signing_spki: str
    release_signing_key_sha256: str
    coordinator_signing_spki: str
    coordinator_signing_key_sha256: str


class AuditEvent(_Answer):
    """A recorded event."""

    seq: int
    at: datetime
    kind: str
    actor: str
    facts: dict[str, object]
    leaf_sha256: str


class Checkpoint(_Answer):
    """A signed head of the log."""

    size: int
    head: str
    at: datetime
    body: str
    signature: str


class User(_Answer):
    """A user."""

    user_id: str
    name: str
    roles: list[str]
    created_at: datetime
    disabled_at: datetime | None


class AddUserRequest(_Request):
    """A new user."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    roles: list[Role] = []


class RoleRequest(_Request):
    """A role to give or take."""

    role: Role


class Token(_Answer):
    """A token without its value."""

    token_id: str
    user_id: str
    label: str
    scopes: list[str] | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class CreateTokenRequest(_Request):
    """A new token: for oneself, or by an admin for another user."""

    label: Annotated[str, StringConstraints(max_length=128)] = ""
    user_id: str | None = None
    lifetime_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    scopes: list[Annotated[str, StringConstraints(max_length=64)]] | None = None


class NewToken(_Answer):
    """A token and its value, shown this once."""

    token: str
    token_id: str
    user_id: str
    label: str
    scopes: list[str] | None
    expires_at: datetime | None
