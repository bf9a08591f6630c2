"""Checkpoints: a party's signed word on the size and head of its log, which it cannot take back.

The body is RFC 8785 JSON ``{"at", "head", "origin", "size"}``, signed as "WR/sig/checkpoint".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

import rfc8785

from fl_protocol.audit.chain import TreeHead
from fl_protocol.audit.events import AuditEventInvalidError, instant_from_text, text_from_instant
from fl_protocol.errors import ProtocolError
from fl_protocol.ids import IdentifierInvalidError, Sha256Hex, sha256_hex_from_text
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody, sign_body, verify_body

SIGNATURE_KIND = "WR/sig/checkpoint"


class CheckpointInvalidError(ProtocolError):
    """A checkpoint's body is not well formed."""

    code = "checkpoint-invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a party says of its log: whose it is, how long, its head, and when that was said."""

    origin: str
    size: int
    head: Sha256Hex
    at: datetime

    @property
    def tree_head(self) -> TreeHead:
        """Size and head, for proofs."""
        return TreeHead(size=self.size, root=self.head)

    def encode(self) -> bytes:
        """The canonical bytes that are signed."""
        document: dict[str, str | int] = {
            "origin": self.origin,
            "size": self.size,
            "head": self.head,
            "at": text_from_instant(self.at),
        }
        return rfc8785.dumps({**document})

    @classmethod
    def decode(cls, data: bytes) -> Checkpoint:
        """Read what ``encode`` wrote, and nothing else.

        Raises:
            CheckpointInvalidError: the bytes are no checkpoint, or not the canonical form of one.
        """
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CheckpointInvalidError("a checkpoint is JSON") from error
        if not isinstance(document, dict) or set(document) != {"origin", "size", "head", "at"}:
            raise CheckpointInvalidError("a checkpoint has exactly the keys origin, size, head and at")
        origin, size, head, at = (document[key] for key in ("origin", "size", "head", "at"))
        if not all(isinstance(value, str) for value in (origin, head, at)) or type(size) is not int or size < 0:
            raise CheckpointInvalidError("a checkpoint's origin, head and at are texts, its size a whole number")
        try:
            checkpoint = cls(origin=origin, size=size, head=sha256_hex_from_text(head), at=instant_from_text(at))
        except (IdentifierInvalidError, AuditEventInvalidError) as error:
            raise CheckpointInvalidError("a checkpoint's head or instant is not well formed") from error
        try:
            is_canonical = checkpoint.encode() == data
        except rfc8785.CanonicalizationError as error:
            raise CheckpointInvalidError("a checkpoint has a canonical form") from error
        if not is_canonical:
            raise CheckpointInvalidError("the bytes are not the canonical form of the checkpoint")
        return checkpoint


def sign_checkpoint(signer: Signer, checkpoint: Checkpoint) -> SignedBody:
    """The checkpoint and the party's signature over its exact bytes."""
    return sign_body(signer, SIGNATURE_KIND, checkpoint.encode())


def verify_checkpoint(spki_der: bytes, signed: SignedBody) -> Checkpoint:
    """The checkpoint, once its signature is known to be that key's.

    Raises:
        SigningKeyInvalidError: ``spki_der`` is no P-256 key.
        SignatureInvalidError: the signature is not that key's over these bytes.
        CheckpointInvalidError: the body is no checkpoint.
    """
    return Checkpoint.decode(verify_body(spki_der, SIGNATURE_KIND, signed))
