"""Every message that led to one sum, as one file: what an auditor needs, besides the masked vectors, to make it again.

A site that takes part checks a few chunks (``reexecution``); an auditor who has the whole record checks everything:
each share against its dealer's commitment, the transcript's root, the coordinator's signature. Pure; nothing in it is
secret from whoever may read what the coordinator holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import rfc8785

from fl_protocol.ids import Sha256Hex, SiteId, site_id_from_text
from fl_protocol.packing import pack, text_from_bytes, u32, u32_from_bytes, unpack
from fl_protocol.secagg.coordinator_role import (
    ExchangeOpen,
    SurvivingCohort,
    freeze_cohort,
    freeze_sharers,
    freeze_survivors,
    make_m8,
    recover_secrets,
    transcript_root,
)
from fl_protocol.secagg.mask_removal import mask_removal_terms
from fl_protocol.secagg.messages import ExchangeResult, StatementKind
from fl_protocol.secagg.reading import check_context, check_signature, read_message
from fl_protocol.secagg.reexecution import Reexecution
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.spec.secagg_params import SecAggParams

Messages = Mapping[SiteId, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class SumRecord:
    """The messages, exactly as they were received, by sender.

    Attributes:
        manifest: M0.
        exchange_index: which exchange of the round.
        exchange_attempt: which attempt at it.
        layout_json: the payload's layout, canonical JSON; M0 names its digest.
        m1s, m3s, m5s, m7s, m9s: of U1, U2, U3, and of the sites whose M7 and M9 were used.
        m10: the coordinator's word on the sum.
    """

    manifest: SignedBody
    exchange_index: int
    exchange_attempt: int
    layout_json: bytes
    m1s: Messages
    m3s: Messages
    m5s: Messages
    m7s: Messages
    m9s: Messages = field(repr=False)
    m10: SignedBody

    def encode(self) -> bytes:
        """``pack`` of M0, u32 index, u32 attempt, layout, five lists of ``pack(site, message, ...)``, M10."""
        lists = (self.m1s, self.m3s, self.m5s, self.m7s, self.m9s)
        return pack(
            self.manifest.encode(),
            u32(self.exchange_index),
            u32(self.exchange_attempt),
            self.layout_json,
            *(pack(*(part for site in sorted(one) for part in (site.encode(), one[site]))) for one in lists),
            self.m10.encode(),
        )

    @classmethod
    def decode(cls, data: bytes) -> SumRecord:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError, IdentifierInvalidError."""
        manifest, index, attempt, layout_json, m1s, m3s, m5s, m7s, m9s, m10 = unpack(data, 10)
        return cls(
            manifest=SignedBody.decode(manifest),
            exchange_index=u32_from_bytes(index),
            exchange_attempt=u32_from_bytes(attempt),
            layout_json=layout_json,
            m1s=_messages(m1s),
            m3s=_messages(m3s),
            m5s=_messages(m5s),
            m7s=_messages(m7s),
            m9s=_messages(m9s),
            m10=SignedBody.decode(m10),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenRecord:
    """A record of which everything was checked but the masked vectors and the sum's bytes."""

    reexecution: Reexecution
    surviving: SurvivingCohort
    result: ExchangeResult


def prove_record(
    record: SumRecord,
    *,
    layout: PayloadLayout,
    params: SecAggParams,
    pins: Mapping[SiteId, Sha256Hex],
    coordinator_spki: bytes,
) -> ProvenRecord:
    """Check every message, every share and the transcript's root.

    Args:
        record: as the coordinator gives it.
        layout: read from ``record.layout_json``; the caller has compared its digest with M0's.
        params: of the run.
        pins: the signing keys of the run's roster, from the RunSpec that the sites approved.
        coordinator_spki: the coordinator's signing key, compared out of band.

    Raises:
        SecAggRefusedError: as the coordinator's own checks (docs/protocol/secagg.md, 6 and 7); CONTEXT_MISMATCH where
            M10 is of other survivors or another transcript.
    """
    opened = ExchangeOpen(
        manifest=record.manifest,
        exchange_index=record.exchange_index,
        exchange_attempt=record.exchange_attempt,
        layout=layout,
        params=params,
        roster=pins,
    )
    check_signature(coordinator_spki, StatementKind.M0, record.manifest)
    surviving = freeze_survivors(freeze_sharers(freeze_cohort(opened, record.m1s), record.m3s), record.m5s)
    make_m8(surviving, record.m7s)
    terms = mask_removal_terms(surviving.survivors, recover_secrets(surviving, record.m9s))
    check_signature(coordinator_spki, StatementKind.M10, record.m10)
    result = read_message(ExchangeResult.decode, record.m10.body)
    someone = surviving.sites[0]
    check_context(result.h_manifest, opened.h_manifest, site=someone)
    check_context(result.h_survivors, surviving.survivors.h_survivors, site=someone)
    check_context(result.transcript_root, transcript_root(surviving, record.m7s, record.m9s), site=someone)
    reexecution = Reexecution(surviving.survivors, terms, layout=layout, chunk_bytes=params.chunk_bytes)
    return ProvenRecord(reexecution=reexecution, surviving=surviving, result=result)


def layout_json_of(layout: PayloadLayout) -> bytes:
    """The canonical JSON whose SHA-256 M0 names."""
    return rfc8785.dumps(layout.to_document())  # type: ignore[arg-type]  # JSON values, typed as object


def _messages(field_bytes: bytes) -> dict[SiteId, bytes]:
    parts = unpack(field_bytes)
    return {
        site_id_from_text(text_from_bytes(site)): message
        for site, message in zip(parts[::2], parts[1::2], strict=False)
    }
