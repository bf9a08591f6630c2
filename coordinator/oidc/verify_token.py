"""Whether a token is one that the issuer signed for us and that holds now (RFC 7519; RFC 8725 section 3).

In this order, each step on what the step before has established:

    1. three parts, a header that is a plain object: one of two algorithms, a ``kid``, no extension
    2. the issuer that it names is ours: before anything is fetched, and again after the signature
    3. the key of that name and that algorithm
    4. the signature
    5. issuer, audience, times, subject; then roles
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import jwt

from coordinator.oidc.key_set import KeyName, PublicKey
from coordinator.oidc.rules import Algorithm, OidcRules, Subject, TokenFault, TokenRefused

MAX_TOKEN_BYTES = 8192
MAX_NAME_LENGTH = 128
_ALGORITHMS: Mapping[str, Algorithm] = {algorithm.value: algorithm for algorithm in Algorithm}
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parsed:
    """What a token says of itself; nothing of it is believed yet."""

    key_name: KeyName
    claims: Mapping[str, object]


def is_like_a_token_of_an_issuer(text: str) -> bool:
    """Whether it has the three parts of a JWS; a token of ours has one."""
    return text.count(".") == 2


def verify_token(
    token: str, rules: OidcRules, *, find_key: Callable[[KeyName], PublicKey | None], now: datetime
) -> Subject | TokenRefused:
    """Judge a token.

    Args:
        token: as it came.
        rules: what the operator said.
        find_key: the issuer's key of a name; what it raises passes through.
        now: the present instant.
    """
    parsed = _parse(token)
    if isinstance(parsed, TokenRefused):
        return parsed
    # Safety: unsigned as yet. It decides only whether the issuer is asked for a key.
    if parsed.claims.get("iss") != rules.issuer:
        return TokenRefused(fault=TokenFault.ISSUER)
    key = find_key(parsed.key_name)
    if key is None:
        return TokenRefused(fault=TokenFault.KEY_UNKNOWN)
    algorithm = parsed.key_name[1]
    try:
        payload = jwt.PyJWS().decode_complete(token, key=key, algorithms=[algorithm.value])["payload"]
        claims = _object(payload)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        return TokenRefused(fault=TokenFault.SIGNATURE)
    return _judge(claims, rules, now=now.timestamp())


def _parse(token: str) -> _Parsed | TokenRefused:
    malformed = TokenRefused(fault=TokenFault.MALFORMED)
    parts = token.split(".")
    if len(token) > MAX_TOKEN_BYTES or len(parts) != 3 or not token.isascii():
        return malformed
    try:
        header, claims = _object(_decoded(parts[0])), _object(_decoded(parts[1]))
    except (ValueError, RecursionError):
        return malformed
    named = header.get("alg")
    algorithm = _ALGORITHMS.get(named) if isinstance(named, str) else None
    if algorithm is None:
        return TokenRefused(fault=TokenFault.ALGORITHM)
    kid, kind = header.get("kid"), header.get("typ", "JWT")
    # Safety: ``crit`` demands what is not known here; ``jwk``, ``jku`` and ``x5u`` name keys, and are not read.
    is_plain = "crit" not in header and isinstance(kind, str) and kind.lower() in _TYPES
    if not isinstance(kid, str) or not kid or not is_plain:
        return malformed
    return _Parsed(key_name=(kid, algorithm), claims=claims)


def _judge(claims: Mapping[str, object], rules: OidcRules, *, now: float) -> Subject | TokenRefused:
    times = {name: _seconds(claims.get(name)) for name in ("exp", "iat", "nbf")}
    audience = claims.get("aud")
    audiences = [audience] if isinstance(audience, str) else audience
    subject = _subject(claims, rules)
    fault: TokenFault | None = None
    if claims.get("iss") != rules.issuer:
        fault = TokenFault.ISSUER
    elif not isinstance(audiences, list) or rules.audience not in audiences:
        fault = TokenFault.AUDIENCE
    elif times["exp"] is None or times["iat"] is None or ("nbf" in claims and times["nbf"] is None):
        fault = TokenFault.MALFORMED
    elif now >= times["exp"] + rules.skew_s:
        fault = TokenFault.EXPIRED
    elif max(times["iat"], times["nbf"] or times["iat"]) > now + rules.skew_s:
        fault = TokenFault.NOT_YET_VALID
    elif subject is None:
        fault = TokenFault.SUBJECT
    if fault is not None:
        return TokenRefused(fault=fault)
    assert subject is not None, "otherwise there is a fault"
    return subject


def _subject(claims: Mapping[str, object], rules: OidcRules) -> Subject | None:
    sub = claims.get("sub")
    if not isinstance(sub, str) or not sub or not sub.isprintable():
        return None
    subject = Subject(
        issuer=rules.issuer,
        host=rules.host,
        sub=sub,
        roles=_roles(claims, rules),
        authenticated_at=_seconds(claims.get("auth_time")),
    )
    # Names are kept whole or not at all: two that are cut to one would be one person to the log.
    return subject if len(subject.name) <= MAX_NAME_LENGTH else None


def _roles(claims: Mapping[str, object], rules: OidcRules) -> frozenset[str]:
    found: object = claims.get(rules.roles_claim)
    if found is None:
        found = claims
        for part in rules.roles_claim.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    words = found.split() if isinstance(found, str) else found
    if not isinstance(words, list):
        return frozenset()
    return frozenset(rules.role_map[word] for word in words if isinstance(word, str) and word in rules.role_map)


def _seconds(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if isinstance(value, int | float) and is_number and abs(value) < 1e12 else None


def _decoded(part: str) -> bytes:
    try:
        return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("no base64url") from error


def _object(content: bytes) -> dict[str, object]:
    document = json.loads(content, object_pairs_hook=_without_repetition, parse_constant=_no_number)
    if not isinstance(document, dict):
        raise ValueError("no object")  # noqa: TRY004 # whatever is wrong with the bytes is one fault
    return document


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Which of two claims of one name holds is read differently by different programs.
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a name occurs twice")
    return document


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")
