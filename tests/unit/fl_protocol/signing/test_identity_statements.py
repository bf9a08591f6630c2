"""Statements of identity: what was signed is what is read, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.packing import pack, u64
from fl_protocol.signing.keys import SignatureInvalidError
from fl_protocol.signing.renewal import (
    RenewalChallenge,
    RenewalChallengeInvalidError,
    proof_message,
    sign_challenge,
    verify_challenge,
    verify_proof,
)
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.signing.site_statement import (
    NO_STATEMENT,
    SiteStatement,
    SiteStatementInvalidError,
    SiteStatementKind,
    sign_site_statement,
    verify_site_statement,
)
from fl_protocol.signing.trusted_roots import TrustedRoots, TrustedRootsInvalidError, sign_roots, verify_roots
from fl_protocol.testing.entropy import seeded_signer

SITE, OTHER = seeded_signer("site"), seeded_signer("other")
STATEMENT = SiteStatement(
    site_id=SiteId("st-mary"),
    kind=SiteStatementKind.RENEW,
    counter=7,
    previous_sha256=NO_STATEMENT,
    nonce=bytes(range(16)),
    csr_sha256=Sha256Hex("ab" * 32),
)
CHALLENGE = RenewalChallenge(
    client_nonce=b"c" * 32,
    server_nonce=b"s" * 32,
    signing_key_sha256=Sha256Hex("01" * 32),
    listener_sha256=Sha256Hex("02" * 32),
    expires_at=datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC),
)
ROOTS = TrustedRoots(origin="wardround://coordinator/x", version=3, roots=(b"one", b"two"))


def test_statement_has_the_bytes_that_its_docstring_says() -> None:
    expected = pack(b"st-mary", b"renew", u64(7), bytes(32), bytes(range(16)), b"\xab" * 32)
    assert STATEMENT.encode() == expected
    assert SiteStatement.decode(expected) == STATEMENT


@pytest.mark.parametrize(
    ("signed", "verify"),
    [
        (sign_site_statement(SITE, STATEMENT), verify_site_statement),
        (sign_challenge(SITE, CHALLENGE), verify_challenge),
        (sign_roots(SITE, ROOTS), verify_roots),
    ],
    ids=["statement", "challenge", "roots"],
)
def test_signed_word_is_read_by_its_key_and_kind_only(signed, verify) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    assert verify(SITE.spki_der, signed) in (STATEMENT, CHALLENGE, ROOTS)
    with pytest.raises(SignatureInvalidError):
        verify(OTHER.spki_der, signed)
    with pytest.raises(SignatureInvalidError):
        verify(SITE.spki_der, sign_body(SITE, "WR/sig/approval", signed.body))
    altered = SignedBody(body=signed.body[:-1] + bytes([signed.body[-1] ^ 1]), signature=signed.signature)
    with pytest.raises(SignatureInvalidError):
        verify(SITE.spki_der, altered)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        STATEMENT.encode() + b"\x00\x00\x00\x00",
        pack(b"st-mary", b"left", u64(7), bytes(32), bytes(16), b""),
        pack(b"St Mary", b"present", u64(7), bytes(32), bytes(16), b""),
        pack(b"st-mary", b"present", u64(0), bytes(32), bytes(16), b""),
        pack(b"st-mary", b"present", u64(7), bytes(31), bytes(16), b""),
        pack(b"st-mary", b"present", u64(7), bytes(32), bytes(15), b""),
        pack(b"st-mary", b"present", u64(7), bytes(32), bytes(16), bytes(32)),
        pack(b"st-mary", b"renew", u64(7), bytes(32), bytes(16), b""),
    ],
)
def test_bytes_that_are_no_statement_are_refused(body: bytes) -> None:
    with pytest.raises(SiteStatementInvalidError):
        SiteStatement.decode(body)


def test_two_statements_that_differ_in_anything_have_two_digests() -> None:
    others = (
        replace(STATEMENT, counter=8),
        replace(STATEMENT, nonce=b"x" * 16),
        replace(STATEMENT, previous_sha256=Sha256Hex("cd" * 32)),
        replace(STATEMENT, csr_sha256=Sha256Hex("cd" * 32)),
        replace(STATEMENT, site_id=SiteId("charite")),
    )
    assert len({STATEMENT.sha256, *(other.sha256 for other in others)}) == 6


def test_proof_is_for_one_challenge_and_one_statement() -> None:
    challenge, statement = sign_challenge(OTHER, CHALLENGE), sign_site_statement(SITE, STATEMENT)
    signature = SITE.sign(proof_message(challenge, statement))
    verify_proof(SITE.spki_der, challenge=challenge, statement=statement, signature=signature)
    another = sign_challenge(OTHER, replace(CHALLENGE, server_nonce=b"t" * 32))
    later = sign_site_statement(SITE, replace(STATEMENT, counter=8))
    for asked, said in ((another, statement), (challenge, later)):
        with pytest.raises(SignatureInvalidError):
            verify_proof(SITE.spki_der, challenge=asked, statement=said, signature=signature)


@pytest.mark.parametrize("body", [b"", pack(b"c" * 32), pack(b"c" * 31, b"s" * 32, bytes(32), bytes(32), u64(1))])
def test_bytes_that_are_no_challenge_are_refused(body: bytes) -> None:
    with pytest.raises(RenewalChallengeInvalidError):
        RenewalChallenge.decode(body)


@pytest.mark.parametrize("body", [b"", pack(b"origin", u64(1)), pack(b"origin", u64(1), *[b"root"] * 9)])
def test_bytes_that_are_no_list_of_roots_are_refused(body: bytes) -> None:
    with pytest.raises(TrustedRootsInvalidError):
        TrustedRoots.decode(body)
