"""M10: the coordinator's signed word on the sum, and the one root over every message that led to it."""

from __future__ import annotations

from collections.abc import Mapping

from fl_protocol.ids import SiteId
from fl_protocol.packing import pack
from fl_protocol.secagg.coordinator_role.uploads import SurvivingCohort
from fl_protocol.secagg.messages import ExchangeResult, StatementKind
from fl_protocol.secagg.transcript import tree_root
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody, sign_body


def transcript_root(surviving: SurvivingCohort, m7s: Mapping[SiteId, bytes], m9s: Mapping[SiteId, bytes]) -> bytes:
    """The root of the tree over M0, M1s, M3 headers, M5s, M7s and M9s, each list in the order of the sites' names.

    A leaf is ``pack(kind, body, signature)``. The leaves under an M3 header are bound by its own root.

    Args:
        surviving: U3, which holds all but the last two lists.
        m7s: the confirmations that M8 was made of.
        m9s: the reveals that the masks were removed with.
    """
    cohort, sharers = surviving.survivors.cohort, surviving.survivors.sharers
    lists: tuple[tuple[StatementKind, tuple[SignedBody, ...]], ...] = (
        (StatementKind.M0, (surviving.shared.keyed.opened.manifest,)),
        (StatementKind.M1, cohort.entries),
        (StatementKind.M3, sharers.entries),
        (StatementKind.M5, surviving.survivors.entries),
        (StatementKind.M7, tuple(SignedBody.decode(m7s[site]) for site in sorted(m7s))),
        (StatementKind.M9, tuple(SignedBody.decode(m9s[site]) for site in sorted(m9s))),
    )
    return tree_root([pack(kind.encode(), entry.body, entry.signature) for kind, part in lists for entry in part])


def make_m10(surviving: SurvivingCohort, signer: Signer, *, result_sha256: bytes, transcript_root: bytes) -> bytes:
    """M10.

    Args:
        surviving: whose sum it is.
        signer: the coordinator's.
        result_sha256: SHA-256 of the sum's wire image (``RingVector.sha256``).
        transcript_root: as the function of that name gives it.
    """
    body = ExchangeResult(
        h_manifest=surviving.survivors.cohort.h_manifest,
        h_survivors=surviving.survivors.h_survivors,
        result_sha256=result_sha256,
        transcript_root=transcript_root,
    )
    return sign_body(signer, StatementKind.M10.value, body.encode()).encode()
