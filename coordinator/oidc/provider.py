"""One configured identity provider: its rules, its keys, and the judgement of its tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from coordinator.oidc.documents import Fetcher
from coordinator.oidc.key_ring import KeyRing
from coordinator.oidc.rules import OidcRules, Subject, TokenRefused
from coordinator.oidc.verify_token import verify_token


class IdentityProvider:
    """Safe to ask from several threads. Nothing is fetched before the first token comes."""

    def __init__(self, rules: OidcRules, fetcher: Fetcher, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Remember the rules."""
        self.rules = rules
        self._keys = KeyRing(rules, fetcher, monotonic=monotonic)

    def n_keys(self) -> int:
        """How many usable keys the issuer has now. Raises IdentityProviderUnavailableError."""
        return self._keys.n_keys()

    def judge(self, token: str, *, now: datetime) -> Subject | TokenRefused:
        """Who the token speaks of, or why it is refused.

        Raises:
            IdentityProviderUnavailableError: the issuer's keys are needed and do not come.
        """
        return verify_token(token, self.rules, find_key=self._keys.find, now=now)
