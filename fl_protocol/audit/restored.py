"""The coordinator's signed word that it was restored from a backup: from where on its log is another than sites saw.

The body is RFC 8785 JSON ``{"at", "backup_made_at", "epoch", "head", "origin", "size"}``, signed as "WR/sig/restored".
It makes the difference between a restore and a fork: what a site saw after that size and does not find again was lost,
and the coordinator says so, once, by a number that only rises.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

import rfc8785

from fl_protocol.audit.events import AuditEventInvalidError, instant_from_text, text_from_instant
from fl_protocol.errors import ProtocolError
from fl_protocol.ids import IdentifierInvalidError, Sha256Hex, sha256_hex_from_text
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody, sign_body, verify_body

SIGNATURE_KIND = "WR/sig/restored"
_TEXTS = ("at", "backup_made_at", "head", "origin")
_NUMBERS = ("epoch", "size")


class RestoredStatementInvalidError(ProtocolError):
    """The statement's body is not well formed."""

    code = "restored-statement-invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredStatement:
    """A restore.

    Attributes:
        origin: whose log.
        epoch: how often this coordinator was restored, this time included.
        size: how many rows of the log the backup held.
        head: their head.
        backup_made_at: when the backup was made.
        at: when it was restored.
    """

    origin: str
    epoch: int
    size: int
    head: Sha256Hex
    backup_made_at: datetime
    at: datetime

    def encode(self) -> bytes:
        """The canonical bytes that are signed."""
        document: dict[str, str | int] = {
            "origin": self.origin,
            "epoch": self.epoch,
            "size": self.size,
            "head": self.head,
            "backup_made_at": text_from_instant(self.backup_made_at),
            "at": text_from_instant(self.at),
        }
        return rfc8785.dumps({**document})

    @classmethod
    def decode(cls, data: bytes) -> RestoredStatement:
        """Read what ``encode`` wrote, and nothing else.

        Raises:
            RestoredStatementInvalidError: the bytes are no such statement, or not its canonical form.
        """
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise RestoredStatementInvalidError("a statement is JSON") from error
        if not isinstance(document, dict) or set(document) != {*_TEXTS, *_NUMBERS}:
            raise RestoredStatementInvalidError("a statement of a restore has exactly its keys")
        is_typed = all(isinstance(document[key], str) for key in _TEXTS) and all(
            type(document[key]) is int and 0 <= document[key] < 2**53 for key in _NUMBERS
        )
        if not is_typed:
            raise RestoredStatementInvalidError("a value of the statement is of the wrong kind")
        try:
            statement = cls(
                origin=document["origin"],
                epoch=document["epoch"],
                size=document["size"],
                head=sha256_hex_from_text(document["head"]),
                backup_made_at=instant_from_text(document["backup_made_at"]),
                at=instant_from_text(document["at"]),
            )
            is_canonical = statement.encode() == data
        except (IdentifierInvalidError, AuditEventInvalidError, rfc8785.CanonicalizationError) as error:
            raise RestoredStatementInvalidError("the statement's head or an instant is not well formed") from error
        if not is_canonical:
            raise RestoredStatementInvalidError("the bytes are not the canonical form of the statement")
        return statement


def sign_restored(signer: Signer, statement: RestoredStatement) -> SignedBody:
    """The statement under the coordinator's signing key."""
    return sign_body(signer, SIGNATURE_KIND, statement.encode())


def verify_restored(spki_der: bytes, signed: SignedBody) -> RestoredStatement:
    """The statement, once its signature is known to be that key's.

    Raises:
        SigningKeyInvalidError, SignatureInvalidError: it is not.
        RestoredStatementInvalidError: the body is no statement of a restore.
    """
    return RestoredStatement.decode(verify_body(spki_der, SIGNATURE_KIND, signed))
