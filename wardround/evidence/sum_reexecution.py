"""A published sum made again from what the sites signed and uploaded: the coordinator's word counts for nothing here.

As numbered in ``reexecute_sum``. Memory: two vectors of the sum's length, however many sites.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

from fl_protocol.codec.chunks import CHUNK_BYTES, ChunkTreeBuilder
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.errors import ProtocolError
from fl_protocol.ids import SiteId
from fl_protocol.secagg.masking import add_into
from fl_protocol.secagg.sum_record import SumRecord, prove_record
from fl_protocol.signing.keys import spki_fingerprint
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.spec.round_spec import RoundManifest
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.secagg_params import SecAggParams
from wardround.documents import Document
from wardround.errors import EvidenceFaultError

OpenUpload = Callable[[SiteId], Iterable[bytes]]
"""The bytes of one survivor's masked vector, in pieces of any size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SumReexecuted:
    """A sum that is what the sites uploaded."""

    run_id: str
    round_index: int
    sites: tuple[str, ...]
    lost_sites: tuple[str, ...]
    n_bytes: int
    sum_sha256: str
    transcript_root: str
    coordinator_key_sha256: str

    def to_document(self) -> Document:
        """As the ``--json`` answer shows it."""
        return asdict(self)


def reexecute_sum(
    record_bytes: bytes,
    published: Iterable[bytes],
    open_upload: OpenUpload,
    *,
    spec: RunSpec,
    coordinator_spki: bytes,
    tell: Callable[[str], None] = lambda _: None,
) -> SumReexecuted:
    """Make the sum again.

    1. M0 names this RunSpec, and the layout that the record brings.
    2. M0 and M10 are signed by the coordinator's key; M1, M3, M5, M7 and M9 by the keys that the RunSpec pins.
    3. Every share matches its dealer's commitment; the secrets that they give match what their owners signed.
    4. M10 names these survivors, and the root over all these messages.
    5. Every survivor's vector has the tree that the survivor signed.
    6. Their sum, without the masks, is the published sum, whose digest M10 names.

    Args:
        record_bytes: the record of the exchange.
        published: the sum's wire image in pieces.
        open_upload: how a survivor's masked vector is read.
        spec: the RunSpec that the sites approved.
        coordinator_spki: the coordinator's signing key.
        tell: told a line after each site.

    Raises:
        EvidenceFaultError: which of these does not hold, and why.
    """
    try:
        record = SumRecord.decode(record_bytes)
        manifest = RoundManifest.decode(record.manifest.body)
        if manifest.run_spec_sha256 != spec.digest():
            raise EvidenceFaultError("M0 names another RunSpec than the one that the sites approved")
        if hashlib.sha256(record.layout_json).hexdigest() != manifest.payload_layout_sha256:
            raise EvidenceFaultError("M0 names another payload layout than the record brings")
        layout = PayloadLayout.from_document(json.loads(record.layout_json))
        secagg = spec.secure_aggregation
        proven = prove_record(
            record,
            layout=layout,
            params=SecAggParams(suite=secagg.suite.value, min_cohort=secagg.min_cohort),
            pins=spec.cohort.pins,
            coordinator_spki=coordinator_spki,
        )
        total = RingVector.zeros(layout.n_ring32, layout.n_ring64)
        for number, site in enumerate(proven.reexecution.sites, start=1):
            add_into(
                total, _signed_vector(site, open_upload(site), layout=layout, root=proven.reexecution.root_of(site))
            )
            tell(f"{number} of {len(proven.reexecution.sites)} sites: {site}'s upload is the one that it signed")
        proven.reexecution.unmask_whole(total)
        found = RingVector.from_chunks(published, n32=layout.n_ring32, n64=layout.n_ring64)
    except (ProtocolError, ValueError) as error:
        raise EvidenceFaultError(f"the sum cannot be made again: {error}") from error
    digest = total.sha256()
    if not total.equals(found) or digest != proven.result.result_sha256:
        raise EvidenceFaultError(
            "the published sum is NOT what the sites uploaded",
            advice="Keep the record, the uploads and the sum: together they convict the coordinator.",
            expected_sha256=digest.hex(),
            published_sha256=found.sha256().hex(),
        )
    return SumReexecuted(
        run_id=manifest.run_id,
        round_index=manifest.round_index,
        sites=proven.surviving.sites,
        lost_sites=proven.surviving.survivors.dropped,
        n_bytes=layout.n_bytes,
        sum_sha256=digest.hex(),
        transcript_root=proven.result.transcript_root.hex(),
        coordinator_key_sha256=spki_fingerprint(coordinator_spki),
    )


def _signed_vector(site: SiteId, pieces: Iterable[bytes], *, layout: PayloadLayout, root: bytes) -> RingVector:
    tree = ChunkTreeBuilder()

    def noted() -> Iterator[bytes]:
        for chunk in _whole_chunks(pieces):
            tree.add(chunk)
            yield chunk

    vector = RingVector.from_chunks(noted(), n32=layout.n_ring32, n64=layout.n_ring64)
    if tree.root() != root:
        raise EvidenceFaultError("a site's stored upload is not the one that it signed", site=site)
    return vector


def _whole_chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, cut where the tree's leaves end."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= CHUNK_BYTES:
            yield bytes(held[:CHUNK_BYTES])
            del held[:CHUNK_BYTES]
    if held:
        yield bytes(held)
