"""From a JWKS document (RFC 7517) to the public keys that may sign tokens. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from coordinator.oidc.rules import Algorithm

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
KeyName = tuple[str, Algorithm]

_MAX_KEYS = 100
_RSA_BITS = range(2048, 8193)
_ALGORITHM_OF_TYPE: Mapping[str, Algorithm] = {"RSA": Algorithm.RS256, "EC": Algorithm.ES256}


def keys_from_document(document: Mapping[str, object]) -> dict[KeyName, PublicKey]:
    """The usable keys by ``kid`` and algorithm. What is unusable is left out, as RFC 7517 section 5 has it.

    Safety: two keys with one name are both left out. Which of them signed would be a guess, and somebody who can add a
    key to the document could put it under the name of another.
    """
    listed = document.get("keys")
    found: dict[KeyName, PublicKey] = {}
    ambiguous: set[KeyName] = set()
    for entry in listed[:_MAX_KEYS] if isinstance(listed, list) else ():
        named = _named_key(entry) if isinstance(entry, dict) else None
        if named is None:
            continue
        name, key = named
        if name in found:
            ambiguous.add(name)
        found[name] = key
    return {name: key for name, key in found.items() if name not in ambiguous}


def _named_key(entry: Mapping[str, object]) -> tuple[KeyName, PublicKey] | None:
    kid, kind = entry.get("kid"), entry.get("kty")
    algorithm = _ALGORITHM_OF_TYPE.get(kind) if isinstance(kind, str) else None
    if algorithm is None or not isinstance(kid, str) or not kid:
        return None
    # A key for encryption, for another algorithm, or one whose private half was published, signs nothing here.
    if entry.get("use", "sig") != "sig" or entry.get("alg", algorithm.value) != algorithm.value or "d" in entry:
        return None
    key = _public_key(entry, algorithm)
    return None if key is None else ((kid, algorithm), key)


def _public_key(entry: Mapping[str, object], algorithm: Algorithm) -> PublicKey | None:
    try:
        key = cast("object", jwt.PyJWK(dict(entry), algorithm=algorithm.value).key)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        return None
    match key:
        case rsa.RSAPublicKey() if key.key_size in _RSA_BITS:
            return key
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP256R1):
            return key
        case _:
            return None
