"""From received bytes to what they say, with every failure turned into a refusal that names whom it can."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fl_protocol.ids import IdentifierInvalidError, Sha256Hex, SiteId
from fl_protocol.packing import PackedBytesInvalidError
from fl_protocol.secagg.messages import MessageInvalidError, StatementKind
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.signing.keys import SignatureInvalidError, SigningKeyInvalidError, spki_fingerprint
from fl_protocol.signing.signed import SignedBody, verify_body

Message = TypeVar("Message")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerVerifier:
    """Whom this party takes for whom: the signing keys that were approved, by their pins.

    Invariant: a pin comes from an approval, never from the message that is checked against it.
    """

    approved: Mapping[SiteId, Sha256Hex]

    def check(self, site: SiteId, spki_der: bytes) -> None:
        """Check that the key is the one approved for that site.

        Raises:
            SecAggRefusedError: SITE_NOT_APPROVED.
        """
        if self.approved.get(site) != spki_fingerprint(spki_der):
            raise SecAggRefusedError(
                RefusalReason.SITE_NOT_APPROVED, blamed=None, site=site, is_listed=site in self.approved
            )


def read_message(decode: Callable[[bytes], Message], data: bytes, *, blamed: SiteId | None = None) -> Message:
    """Decode, or refuse as MESSAGE_MALFORMED."""
    try:
        return decode(data)
    except (PackedBytesInvalidError, IdentifierInvalidError, MessageInvalidError) as error:
        raise SecAggRefusedError(RefusalReason.MESSAGE_MALFORMED, blamed, cause=error.code) from error


def check_signature(
    spki_der: bytes,
    kind: StatementKind,
    signed: SignedBody,
    *,
    blamed: SiteId | None = None,
    site: SiteId | None = None,
) -> None:
    """Check the signature over the exact bytes, or refuse as SIGNATURE_INVALID."""
    try:
        verify_body(spki_der, kind.value, signed)
    except (SignatureInvalidError, SigningKeyInvalidError) as error:
        raise SecAggRefusedError(RefusalReason.SIGNATURE_INVALID, blamed, kind=kind.value, site=site) from error


def check_ascending(sites: Sequence[SiteId]) -> None:
    """Check that a list is in strict order of its names, so that nobody is in it twice and it has one encoding.

    Raises:
        SecAggRefusedError: SITE_REPEATED.
    """
    for earlier, later in itertools.pairwise(sites):
        if earlier >= later:
            raise SecAggRefusedError(RefusalReason.SITE_REPEATED, site=later)


def check_context(found: bytes, expected: bytes, *, site: SiteId) -> None:
    """Check that a statement was made in this context.

    Raises:
        SecAggRefusedError: CONTEXT_MISMATCH.
    """
    if found != expected:
        raise SecAggRefusedError(RefusalReason.CONTEXT_MISMATCH, site=site)


def check_sender(named: SiteId, sender: SiteId) -> None:
    """Check that a statement is made by the site that sent it.

    Raises:
        SecAggRefusedError: SENDER_MISMATCH.
    """
    if named != sender:
        raise SecAggRefusedError(RefusalReason.SENDER_MISMATCH, blamed=sender, named=named)
