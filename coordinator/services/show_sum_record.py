"""A sum laid open to an auditor, within its audit window: every message that led to it, the masked vectors, the sum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy.orm import Session

from coordinator.db.exchanges import context_of, find_upload, messages_of
from coordinator.db.models import Exchange, Round
from coordinator.errors import NotFoundError, ScrubbedError
from coordinator.rounds.events import MessageKind
from coordinator.services.get_result import published_exchange
from coordinator.services.resources import Resources
from coordinator.services.role_cache import RoleCache
from coordinator.services.show_runs import find_run
from coordinator.services.site_instructions import published_result
from fl_protocol.codec.chunks import CHUNK_BYTES
from fl_protocol.ids import SiteId
from fl_protocol.secagg.sum_record import SumRecord, layout_json_of
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.round_spec import RoundKind


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVector:
    """A vector's wire image in pieces, and its length."""

    n_bytes: int
    parts: Iterator[bytes]


def show_sum_record(resources: Resources, run_id: str, round_index: int) -> bytes:
    """Every message of the exchange that a committed round's sum was made in.

    Raises:
        NotFoundError: there is no such run, or the round is not committed.
        ScrubbedError: the round's audit window has closed.
    """

    def read(session: Session) -> bytes:
        run = find_run(session, run_id)
        round_row, exchange = _open(session, run_id, round_index)
        context = context_of(exchange)
        layout = RoleCache().run_facts(run).payload(RoundKind(round_row.kind))
        return SumRecord(
            manifest=SignedBody(body=round_row.manifest_body, signature=round_row.manifest_signature),
            exchange_index=exchange.exchange_index,
            exchange_attempt=exchange.exchange_attempt,
            layout_json=layout_json_of(layout),
            m1s=messages_of(session, context, kind=MessageKind.M1, sites=exchange.u1),
            m3s=messages_of(session, context, kind=MessageKind.M3, sites=exchange.u2),
            m5s=messages_of(session, context, kind=MessageKind.M5, sites=exchange.u3),
            m7s=messages_of(session, context, kind=MessageKind.M7, sites=exchange.u4),
            m9s=messages_of(session, context, kind=MessageKind.M9, sites=exchange.u5),
            m10=SignedBody.decode(published_result(exchange).m10),
        ).encode()

    return resources.db.read("show-sum-record", read)


def open_sum(resources: Resources, run_id: str, round_index: int) -> OpenVector:
    """The sum of a committed round. Raises NotFoundError, ScrubbedError."""

    def read(session: Session) -> tuple[str, int]:
        find_run(session, run_id)
        published = published_result(_open(session, run_id, round_index)[1])
        return published.sum_blob_sha256, published.sum_bytes

    name, n_bytes = resources.db.read("open-sum", read)
    return OpenVector(n_bytes=n_bytes, parts=resources.blobs.iter_chunks(name, offset=0, chunk_bytes=CHUNK_BYTES))


def open_masked_upload(resources: Resources, run_id: str, round_index: int, *, site_id: SiteId) -> OpenVector:
    """What a survivor of a committed round uploaded.

    Raises:
        NotFoundError: there is no such run, the round is not committed, or the site's vector is not in its sum.
        ScrubbedError: the round's audit window has closed.
    """

    def read(session: Session) -> tuple[str, int]:
        find_run(session, run_id)
        _, exchange = _open(session, run_id, round_index)
        # Safety: a vector that is not in the sum is shown to nobody.
        upload = find_upload(session, context_of(exchange), site_id) if site_id in (exchange.u3 or ()) else None
        if upload is None or upload.blob_sha256 is None:
            raise NotFoundError("this site's vector is not in the sum", run_id=run_id, round_index=round_index)
        return upload.blob_sha256, upload.n_bytes

    name, n_bytes = resources.db.read("open-masked-upload", read)
    return OpenVector(n_bytes=n_bytes, parts=resources.blobs.iter_chunks(name, offset=0, chunk_bytes=CHUNK_BYTES))


def _open(session: Session, run_id: str, round_index: int) -> tuple[Round, Exchange]:
    round_row, exchange = published_exchange(session, run_id, round_index)
    if exchange.scrubbed_at is not None:
        raise ScrubbedError(
            "the shares and masked uploads of this round were deleted when its audit window closed",
            run_id=run_id,
            round_index=round_index,
            scrubbed_at=exchange.scrubbed_at.isoformat(),
        )
    return round_row, exchange
