"""The issuer's keys as they were lately, fetched again when they may have changed, and not more often.

An unknown ``kid`` in a token is how a rotated key announces itself, and also what anybody can write. So it makes the
keys be fetched again once, and then not for a minute.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog

from coordinator.oidc.documents import Fetcher
from coordinator.oidc.key_set import KeyName, PublicKey, keys_from_document
from coordinator.oidc.rules import IdentityProviderUnavailableError, OidcRules

MAX_AGE_S = 3600.0
REFETCH_EVERY_S = 60.0
RETRY_EVERY_S = 10.0
WAIT_S = 1.0
_log = structlog.get_logger("coordinator.oidc")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """What was fetched, and when."""

    jwks_uri: str
    keys: Mapping[KeyName, PublicKey]
    at: float


class KeyRing:
    """Safe to ask from several threads; one of them fetches, and only who needs what it fetches waits for it."""

    def __init__(self, rules: OidcRules, fetcher: Fetcher, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Fetch nothing yet."""
        self._rules = rules
        self._fetcher = fetcher
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._held: _Held | None = None
        self._refetched_at: float | None = None
        self._failed_at: float | None = None

    def find(self, name: KeyName) -> PublicKey | None:
        """The key of that name; None where the issuer has none, as far as it was asked lately.

        Raises:
            IdentityProviderUnavailableError: the issuer is needed and does not answer.
        """
        held = self._fresh()
        if held is not None and name in held.keys:
            return held.keys[name]
        # Safety: a thread that waits for an issuer serves nobody, and anybody can name an unknown key.
        if not self._lock.acquire(timeout=WAIT_S):
            raise IdentityProviderUnavailableError("the identity provider is being asked; try again", why="busy")
        try:
            return self._looked_up(name)
        finally:
            self._lock.release()

    def n_keys(self) -> int:
        """How many usable keys the issuer has now; it is asked.

        Raises:
            IdentityProviderUnavailableError: it does not answer as it should; ``why`` says how.
        """
        return len(self._fetch_all().keys)

    def _looked_up(self, name: KeyName) -> PublicKey | None:
        held = self._fresh()
        if held is None:
            held = self._tried(self._fetch_all)
        elif name not in held.keys and self._may_refetch():
            self._refetched_at = self._monotonic()
            uri = held.jwks_uri
            held = self._tried(lambda: self._fetch_keys(uri))
        return held.keys.get(name)

    def _fresh(self) -> _Held | None:
        held = self._held
        return held if held is not None and self._monotonic() - held.at < MAX_AGE_S else None

    def _may_refetch(self) -> bool:
        if self._failed_at is not None:
            # Then nothing is known of the name, and the answer must not be that it does not exist.
            return True
        return self._refetched_at is None or self._monotonic() - self._refetched_at >= REFETCH_EVERY_S

    def _tried(self, fetch: Callable[[], _Held]) -> _Held:
        """Fetch, unless that failed a moment ago."""
        if self._failed_at is not None and self._monotonic() - self._failed_at < RETRY_EVERY_S:
            raise IdentityProviderUnavailableError("the identity provider did not answer; try again", why="lately")
        try:
            held = fetch()
        except IdentityProviderUnavailableError as error:
            self._failed_at = self._monotonic()
            _log.warning("identity_provider_unavailable", url=error.facts.get("url"), why=error.facts.get("why"))
            raise IdentityProviderUnavailableError("the identity provider does not answer; try again") from error
        self._failed_at = None
        self._held = held
        return held

    def _fetch_all(self) -> _Held:
        url = f"{self._rules.issuer.rstrip('/')}/.well-known/openid-configuration"
        discovery = self._fetcher.fetch(url)
        if discovery.get("issuer") != self._rules.issuer:
            raise IdentityProviderUnavailableError("it is another issuer", url=url, why="issuer-differs")
        uri = discovery.get("jwks_uri")
        if not isinstance(uri, str) or not self._is_where_keys_may_be(uri):
            raise IdentityProviderUnavailableError("its keys are elsewhere", url=url, why="jwks-uri-elsewhere")
        return self._fetch_keys(uri)

    def _fetch_keys(self, uri: str) -> _Held:
        keys = keys_from_document(self._fetcher.fetch(uri))
        return _Held(jwks_uri=uri, keys=keys, at=self._monotonic())

    def _is_where_keys_may_be(self, uri: str) -> bool:
        """Whether it is at the issuer's own host and port, or at the host that the operator named besides."""
        try:
            parts = urlsplit(uri)
        except ValueError:
            return False
        return parts.scheme == "https" and parts.netloc.lower() in {self._rules.host, self._rules.keys_host}
