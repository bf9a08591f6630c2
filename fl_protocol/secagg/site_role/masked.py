"""M5 is made: the vector is masked in place, once, and the keys of its masks are gone."""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.codec.chunks import ChunkTreeBuilder
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.secagg.key_agreement import mask_key_pair, pair_seed, self_seed
from fl_protocol.secagg.masking import MaskSign, MaskTerm, RunAll, mask_ranges, mask_term
from fl_protocol.secagg.messages import StatementKind, UploadHeader
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.secagg.site_role.phases import Agreed, Masked
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import sign_body


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedUpload:
    """What leaves the site.

    Attributes:
        header: M5, to send before the vector.
        vector: the same arrays that were given, masked.
        chunk_root: what the header says of them.
        leaves: the leaf hashes of the vector's chunks, whose root that is.
        n_bytes: the size of the vector.
    """

    header: bytes
    vector: RingVector
    chunk_root: bytes
    leaves: tuple[bytes, ...]
    n_bytes: int


def check_shape(state: Agreed, vector: RingVector) -> None:
    """Check the vector against the approved layout.

    Raises:
        SecAggRefusedError: LAYOUT_MISMATCH.
    """
    terms = state.terms
    if (vector.ring32.size, vector.ring64.size) != (terms.n_ring32, terms.n_ring64):
        raise SecAggRefusedError(
            RefusalReason.LAYOUT_MISMATCH, n_ring32=vector.ring32.size, n_ring64=vector.ring64.size
        )


def mask(
    state: Agreed, vector: RingVector, *, signer: Signer, n_ranges: int, run_all: RunAll
) -> tuple[Masked, MaskedUpload]:
    """Add the self-mask and every pair mask in place; sign what came of it.

    Equation (design 2.1, M5), with the sites in the order of their names:
    ``y_i = x_i + PRG(self_i) + sum over j > i of PRG(s_ij) - sum over j < i of PRG(s_ij)``.
    """
    terms = state.terms
    run_all(mask_ranges(vector, mask_terms(state), n_ranges))
    tree = ChunkTreeBuilder()
    for chunk in vector.iter_chunks(terms.params.chunk_bytes):
        tree.add(chunk)
    root = tree.root()
    body = UploadHeader(site=terms.site_id, h_sharers=state.sharers.h_sharers, chunk_root=root, n_bytes=vector.n_bytes)
    header = sign_body(signer, StatementKind.M5.value, body.encode()).encode()
    upload = MaskedUpload(header=header, vector=vector, chunk_root=root, leaves=tree.leaves, n_bytes=vector.n_bytes)
    return Masked(terms=terms, sharers=state.sharers, held=state.held, m5=header), upload


def mask_terms(state: Agreed) -> tuple[MaskTerm, ...]:
    """The site's own term, then one for every other sharer."""
    site, sharers = state.terms.site_id, state.sharers
    own = mask_key_pair(state.secrets.rho, site=site, h_manifest=state.terms.h_manifest)
    terms = [mask_term(self_seed(state.secrets.b, site=site, h_sharers=sharers.h_sharers), MaskSign.ADD)]
    for peer in sharers.sites:
        if peer != site:
            public = sharers.cohort.member(peer).mask_key
            seed = pair_seed(own.private, public, sites=(site, peer), h_sharers=sharers.h_sharers)
            terms.append(mask_term(seed, MaskSign.ADD if peer > site else MaskSign.SUBTRACT))
    return tuple(terms)
