"""The unmasking, done again by somebody who does not believe the coordinator: for a few chunks, or for all of them.

A sum is what the survivors' signed uploads add up to once the revealed masks are taken away. All of that was signed by
the sites before the sum was known: the uploads by M5's tree, the mask secrets by M1's commitments, the set by M7. So a
published sum is checked without a key and without trust, chunk by chunk. Design decision 14; design table 3, row 13.

Who may learn what: evidence and masked chunks are what the coordinator holds, of survivors only. A reader learns the
sum over the survivors and nothing else, as long as fewer than a threshold of the cohort tell it their shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fl_protocol.codec.chunks import n_chunks as count_chunks
from fl_protocol.codec.chunks import verify_chunk
from fl_protocol.codec.ring_vector import UINT32_LE, UINT64_LE, RingVector
from fl_protocol.errors import ProtocolError
from fl_protocol.ids import SiteId
from fl_protocol.packing import pack, unpack
from fl_protocol.secagg import shamir
from fl_protocol.secagg.cohort import Survivors, read_cohort, read_sharers, read_survivors
from fl_protocol.secagg.mask_removal import mask_removal_terms
from fl_protocol.secagg.masking import MaskTerm, apply_masks
from fl_protocol.secagg.reading import PeerVerifier, check_context, read_message
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.spec.secagg_params import CHUNK_BYTES

_WORD32, _WORD64 = 4, 8


class SumFalseError(ProtocolError):
    """A published sum is not what the survivors' signed uploads add up to."""

    code = "sum-false"


@dataclass(frozen=True, slots=True, kw_only=True)
class SumEvidence:
    """What a sum is put together from, besides the masked vectors; each list in ascending order of the sites' names.

    Attributes:
        m1s: of U1.
        m3_headers: of U2.
        m5s: of U3.
        secrets: one element of every site of U2, 32 bytes: ``b`` of a survivor, ``rho`` of a site that dropped.
    """

    m1s: tuple[SignedBody, ...]
    m3_headers: tuple[SignedBody, ...]
    m5s: tuple[SignedBody, ...]
    secrets: tuple[bytes, ...] = field(repr=False)

    def encode(self) -> bytes:
        """``pack(pack(M1 ...), pack(M3 header ...), pack(M5 ...), pack(secret ...))``."""
        lists = (self.m1s, self.m3_headers, self.m5s)
        return pack(*(pack(*(entry.encode() for entry in part)) for part in lists), pack(*self.secrets))

    @classmethod
    def decode(cls, data: bytes) -> SumEvidence:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError."""
        m1s, m3_headers, m5s, secrets = unpack(data, 4)
        return cls(
            m1s=_statements(m1s),
            m3_headers=_statements(m3_headers),
            m5s=_statements(m5s),
            secrets=tuple(unpack(secrets)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkWindow:
    """Neighbouring chunks of the vector and the whole words that they hold.

    Invariant: every word of the vector is in the window of the chunk in which its first byte lies, and in no other.
    """

    first_chunk: int
    n_chunks: int
    words32: slice
    words64: slice

    @property
    def chunks(self) -> range:
        """The numbers of the chunks that must be had."""
        return range(self.first_chunk, self.first_chunk + self.n_chunks)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedChunk:
    """One chunk of one survivor's masked vector, and its path in the tree that M5 signs."""

    data: bytes = field(repr=False)
    path: tuple[bytes, ...]


class Reexecution:
    """One sum whose evidence was read: which windows it has, and whether one of them is true.

    Invariant: survivors and terms follow from statements that the approved sites signed; nothing of it is the word of
    the coordinator.
    """

    def __init__(
        self, survivors: Survivors, terms: Sequence[MaskTerm], *, layout: PayloadLayout, chunk_bytes: int
    ) -> None:
        """Keep what ``read_sum_evidence`` read."""
        self._survivors = survivors
        self._chunk_bytes = chunk_bytes
        self._terms = tuple(terms)
        self._layout = layout
        self._roots = {header.site: header.chunk_root for header in survivors.headers}

    @property
    def sites(self) -> tuple[SiteId, ...]:
        """The survivors, ascending: whose chunks are needed."""
        return self._survivors.sites

    @property
    def n_chunks(self) -> int:
        """How many chunks the vector has."""
        return count_chunks(self._layout.n_bytes, self._chunk_bytes)

    def window_of(self, chunk: int) -> ChunkWindow:
        """As ``window_of_chunk``, of this sum."""
        return window_of_chunk(self._layout, chunk, chunk_bytes=self._chunk_bytes)

    def begin(self, window: ChunkWindow) -> WindowSum:
        """An empty sum over one window."""
        return WindowSum(self, window)

    def root_of(self, site: SiteId) -> bytes:
        """The root that the survivor signed over its chunks. Raises KeyError for anybody else."""
        return self._roots[site]

    def unmask(self, total: RingVector, window: ChunkWindow) -> None:
        """Take the masks away from a sum over this window, in place."""
        apply_masks(total, self._terms, first32=window.words32.start, first64=window.words64.start)

    def unmask_whole(self, total: RingVector) -> None:
        """Take the masks away from the sum of all survivors' whole vectors, in place."""
        apply_masks(total, self._terms)

    def bounds(self, window: ChunkWindow) -> tuple[int, int]:
        """The first byte of the window's chunks in the wire image, and the byte after their last."""
        start = window.first_chunk * self._chunk_bytes
        return start, min(start + window.n_chunks * self._chunk_bytes, self._layout.n_bytes)

    @property
    def head_bytes(self) -> int:
        """How long the 32-bit section is."""
        return _WORD32 * self._layout.n_ring32


class WindowSum:
    """The sum of the survivors' chunks over one window, as they arrive; then it is compared, once."""

    def __init__(self, reexecution: Reexecution, window: ChunkWindow) -> None:
        """Begin with nothing added."""
        self._of = reexecution
        self._window = window
        self._missing = set(reexecution.sites)
        self._total = RingVector.zeros(_length(window.words32), _length(window.words64))

    def add(self, site: SiteId, chunks: Sequence[MaskedChunk]) -> None:
        """Add one survivor's chunks of this window, in order.

        Raises:
            ChunkInvalidError: a chunk is not the one under the root that this site signed.
            SumFalseError: this site is no survivor, or was added before, or the chunks are not those of the window.
        """
        if site not in self._missing or len(chunks) != self._window.n_chunks:
            raise SumFalseError("the chunks are not those of a survivor in this window", site=site)
        root, n_chunks = self._of.root_of(site), self._of.n_chunks
        for index, chunk in zip(self._window.chunks, chunks, strict=True):
            verify_chunk(chunk.data, index=index, n_chunks=n_chunks, path=chunk.path, root=root)
        data = b"".join(chunk.data for chunk in chunks)
        start, stop = self._of.bounds(self._window)
        if len(data) != stop - start:
            raise SumFalseError("a chunk has not the length of its place", site=site, n_bytes=len(data))
        self._missing.remove(site)
        if self._total.ring32.size:
            words32 = np.frombuffer(data, UINT32_LE, count=self._total.ring32.size)
            np.add(self._total.ring32, words32, out=self._total.ring32)
        if self._total.ring64.size:
            first64 = self._of.head_bytes + _WORD64 * self._window.words64.start - start
            words64 = np.frombuffer(data, UINT64_LE, count=self._total.ring64.size, offset=first64)
            np.add(self._total.ring64, words64, out=self._total.ring64)

    def compare(self, published: RingVector) -> None:
        """Take the masks away and compare with the published sum.

        Raises:
            SumFalseError: a survivor's chunks are missing, or the published sum is another one.
        """
        if self._missing:
            raise SumFalseError("a survivor's chunks are missing", n_missing=len(self._missing))
        self._of.unmask(self._total, self._window)
        is_same = np.array_equal(self._total.ring32, published.ring32[self._window.words32]) and np.array_equal(
            self._total.ring64, published.ring64[self._window.words64]
        )
        if not is_same:
            message = "the published sum is not what the survivors' signed uploads add up to"
            raise SumFalseError(message, chunk=self._window.first_chunk)


def read_sum_evidence(
    evidence: SumEvidence,
    *,
    h_manifest: bytes,
    h_survivors: bytes,
    peers: PeerVerifier,
    layout: PayloadLayout,
    chunk_bytes: int = CHUNK_BYTES,
) -> Reexecution:
    """Check every statement and every secret, and that they are about this very sum.

    Args:
        evidence: as the coordinator gives it.
        h_manifest: hM of the exchange, from M0 as the reader holds it.
        h_survivors: hU3, as M10 names it.
        peers: the pins that the reader's own approval holds.
        layout: of the payload, as the reader derives it.
        chunk_bytes: the unit of the trees that M5 signs.

    Raises:
        SecAggRefusedError: as ``read_cohort``, ``read_sharers``, ``read_survivors`` and ``mask_removal_terms``;
            CONTEXT_MISMATCH where the survivors are not those of M10; MESSAGE_MALFORMED; QUORUM_MISSING where the
            survivors are fewer than a dealer's threshold, so that no honest cohort can have revealed this.
    """
    cohort = read_cohort(evidence.m1s, h_manifest=h_manifest, peers=peers)
    if not evidence.m3_headers or not evidence.m5s:
        raise SecAggRefusedError(RefusalReason.MESSAGE_MALFORMED, cause="a set of sites is empty")
    sharers = read_sharers(evidence.m3_headers, cohort)
    survivors = read_survivors(evidence.m5s, sharers, n_bytes=layout.n_bytes)
    check_context(survivors.h_survivors, h_survivors, site=survivors.sites[0])
    if len(survivors.sites) < sharers.quorum:
        raise SecAggRefusedError(RefusalReason.QUORUM_MISSING, found=len(survivors.sites), expected=sharers.quorum)
    if len(evidence.secrets) != len(sharers.sites):
        raise SecAggRefusedError(RefusalReason.MESSAGE_MALFORMED, cause="one secret for every sharer")
    secrets = {site: _element(site, secret) for site, secret in zip(sharers.sites, evidence.secrets, strict=True)}
    terms = mask_removal_terms(survivors, secrets)
    return Reexecution(survivors, terms, layout=layout, chunk_bytes=chunk_bytes)


def decode_sum_evidence(data: bytes) -> SumEvidence:
    """``SumEvidence.decode``, with every failure a refusal. Raises SecAggRefusedError (MESSAGE_MALFORMED)."""
    return read_message(SumEvidence.decode, data)


def window_of_chunk(layout: PayloadLayout, chunk: int, *, chunk_bytes: int = CHUNK_BYTES) -> ChunkWindow:
    """The words whose first byte lies in a chunk, and the chunks in which these words lie: this one, or the next, too.

    Raises:
        IndexError: the vector has no such chunk.
    """
    if not 0 <= chunk < count_chunks(layout.n_bytes, chunk_bytes):
        raise IndexError(f"the vector has no chunk {chunk}")
    start = chunk * chunk_bytes
    stop = min(start + chunk_bytes, layout.n_bytes)
    head = _WORD32 * layout.n_ring32
    words32 = slice(min(start, head) // _WORD32, min(stop, head) // _WORD32)
    words64 = slice(*(-(-max(edge - head, 0) // _WORD64) for edge in (start, stop)))
    end = head + _WORD64 * words64.stop if words64.stop > words64.start else stop
    return ChunkWindow(first_chunk=chunk, n_chunks=1 + (end > stop), words32=words32, words64=words64)


def chunks_of_ring64(layout: PayloadLayout, *, chunk_bytes: int = CHUNK_BYTES) -> range:
    """The chunks in which the 64-bit section begins, goes on and ends: weights, losses and counts. May be empty."""
    if not layout.n_ring64:
        return range(0)
    return range(_WORD32 * layout.n_ring32 // chunk_bytes, count_chunks(layout.n_bytes, chunk_bytes))


def _statements(field_bytes: bytes) -> tuple[SignedBody, ...]:
    return tuple(SignedBody.decode(entry) for entry in unpack(field_bytes))


def _element(site: SiteId, secret: bytes) -> int:
    try:
        return shamir.element_from_bytes(secret)
    except shamir.SharesInvalidError as error:
        raise SecAggRefusedError(RefusalReason.SECRET_INVALID, blamed=site, cause=error.code) from error


def _length(words: slice) -> int:
    length: int = words.stop - words.start
    return length
