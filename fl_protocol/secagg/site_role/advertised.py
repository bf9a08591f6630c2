"""M0 is checked, M1 is made: fresh secrets for this exchange alone."""

from __future__ import annotations

from fl_protocol.ids import IdentifierInvalidError, SiteId
from fl_protocol.secagg import shamir
from fl_protocol.secagg.entropy import Entropy
from fl_protocol.secagg.key_agreement import KEY_BYTES, key_pair_from_private, mask_key_pair
from fl_protocol.secagg.messages import AuditHeads, KeyAdvertisement, StatementKind
from fl_protocol.secagg.reading import PeerVerifier, check_signature, read_message
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.secagg.site_role.phases import Advertised, Opened, OwnSecrets, Terms
from fl_protocol.secagg.transcript import commit_to_b
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.spec.context import ContextInvalidError, ExchangeContext
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.spec.round_spec import RoundManifest, RoundManifestInvalidError
from fl_protocol.spec.secagg_params import SecAggParams


def open_exchange(
    *,
    site_id: SiteId,
    context: ExchangeContext,
    manifest: SignedBody,
    coordinator_spki: bytes,
    layout: PayloadLayout,
    params: SecAggParams,
    peers: PeerVerifier,
    heads: AuditHeads,
) -> Opened:
    """Check that the coordinator signed this manifest, and that it speaks of this exchange, suite and layout.

    Raises:
        SecAggRefusedError: SIGNATURE_INVALID, MESSAGE_MALFORMED, CONTEXT_MISMATCH, LAYOUT_MISMATCH.
    """
    check_signature(coordinator_spki, StatementKind.M0, manifest)
    said = read_message(_manifest_from_bytes, manifest.body)
    if said.exchange(context.exchange_index, context.exchange_attempt) != context or said.suite != params.suite:
        raise SecAggRefusedError(RefusalReason.CONTEXT_MISMATCH, round_index=said.round_index, suite=said.suite)
    if said.payload_layout_sha256 != layout.digest():
        raise SecAggRefusedError(RefusalReason.LAYOUT_MISMATCH, found=said.payload_layout_sha256)
    return Opened(
        terms=Terms(
            site_id=site_id,
            context=context,
            manifest=manifest,
            coordinator_spki=coordinator_spki,
            n_ring32=layout.n_ring32,
            n_ring64=layout.n_ring64,
            max_sites=layout.max_sites,
            params=params,
            peers=peers,
            heads=heads,
        )
    )


def advertise(state: Opened, *, signer: Signer, entropy: Entropy) -> Advertised:
    """Draw rho, b and the transport key; sign M1."""
    terms = state.terms
    secrets = OwnSecrets(rho=shamir.draw_element(entropy), b=shamir.draw_element(entropy))
    transport = key_pair_from_private(entropy.draw(KEY_BYTES))
    body = KeyAdvertisement(
        site=terms.site_id,
        h_manifest=terms.h_manifest,
        mask_key=mask_key_pair(secrets.rho, site=terms.site_id, h_manifest=terms.h_manifest).public,
        transport_key=transport.public,
        b_commitment=commit_to_b(shamir.element_to_bytes(secrets.b), site=terms.site_id, h_manifest=terms.h_manifest),
        spki_der=signer.spki_der,
        heads=terms.heads,
    )
    m1 = sign_body(signer, StatementKind.M1.value, body.encode())
    return Advertised(terms=terms, secrets=secrets, transport_private=transport.private, m1=m1.encode())


def _manifest_from_bytes(data: bytes) -> RoundManifest:
    try:
        return RoundManifest.decode(data)
    except (RoundManifestInvalidError, ContextInvalidError, IdentifierInvalidError) as error:
        raise SecAggRefusedError(RefusalReason.MESSAGE_MALFORMED, cause=error.code) from error
