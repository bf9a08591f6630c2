"""How often one person may ask, and how often one address may fail to say who it is. Token buckets in bounded memory.

Each process counts for itself. This bounds work, not secrecy: a token has 256 bits, which nobody guesses at any rate.
"""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from coordinator.services.refusals import RateLimitedError

_REQUESTS = "requests with this token"


@dataclass(frozen=True, slots=True, kw_only=True)
class RateRule:
    """So many a minute in the long run, and ``burst`` at once."""

    per_minute: float
    burst: int

    def __post_init__(self) -> None:
        """Refuse a rule that would let nobody in, ever."""
        if not (0 < self.per_minute < math.inf and self.burst >= 1):
            raise ValueError("a rule lets at least one through, and more come with time")


@dataclass(frozen=True, slots=True, kw_only=True)
class RateRules:
    """Both rules, and how many persons and addresses are remembered."""

    requests: RateRule = RateRule(per_minute=3000.0, burst=600)
    failures: RateRule = RateRule(per_minute=60.0, burst=60)
    max_tracked: int = 10_000


class TokenBuckets:
    """A bucket a key, full at first. Pure: time is given, in seconds of any clock that does not go back.

    Invariant: at most ``max_tracked`` buckets. The one that was used longest ago is forgotten first: of all, it has had
    most time to fill up, and a forgotten bucket is a full one.
    """

    def __init__(self, rule: RateRule, *, max_tracked: int) -> None:
        """All buckets are full."""
        self._rule = rule
        self._max_tracked = max_tracked
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._levels)

    def wait_s(self, key: str, *, now: float) -> float:
        """Seconds until this bucket holds one; 0 where it does."""
        return max(0.0, (1.0 - self._level(key, now)) * 60.0 / self._rule.per_minute)

    def take(self, key: str, *, now: float) -> float:
        """Take one where there is one; else take nothing and return the seconds until there is."""
        level = self._level(key, now)
        wait_s = self.wait_s(key, now=now)
        if wait_s == 0.0:
            level -= 1.0
        self._levels[key] = (level, now)
        self._levels.move_to_end(key)
        if len(self._levels) > self._max_tracked:
            self._levels.popitem(last=False)
        return wait_s

    def _level(self, key: str, now: float) -> float:
        level, at = self._levels.get(key, (float(self._rule.burst), now))
        return min(float(self._rule.burst), level + (now - at) * self._rule.per_minute / 60.0)


class RateLimits:
    """The limits of one process; safe to ask from several threads.

    Invariant: a credential that was good lately passes, however often others at the same address fail: a hospital is
    one address.
    """

    def __init__(self, rules: RateRules, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Nobody has asked yet."""
        self._requests = TokenBuckets(rules.requests, max_tracked=rules.max_tracked)
        self._failures = TokenBuckets(rules.failures, max_tracked=rules.max_tracked)
        self._max_tracked = rules.max_tracked
        self._good: OrderedDict[bytes, str] = OrderedDict()
        self._monotonic = monotonic
        self._lock = threading.Lock()

    def before_identification(self, address: str, *, credential: bytes) -> None:
        """Let pass who was good lately, or whose address has not failed too often. Here nothing was looked up yet.

        Raises:
            RateLimitedError: this credential is good and asks too often, or it is not known to be good and the address
                has failed too often.
        """
        with self._lock:
            now = self._monotonic()
            if (person := self._good.get(credential)) is not None:
                _refuse(self._requests.wait_s(person, now=now), what=_REQUESTS)
            else:
                _refuse(self._failures.wait_s(_network(address), now=now), what="failures of this address")

    def note_failure(self, address: str, *, credential: bytes) -> None:
        """Somebody at this address could not say who it is."""
        with self._lock:
            self._good.pop(credential, None)
            self._failures.take(_network(address), now=self._monotonic())

    def after_identification(self, person: str, *, credential: bytes) -> None:
        """Count a request of this person, and remember that the credential is good.

        Raises:
            RateLimitedError: too many.
        """
        with self._lock:
            self._good[credential] = person
            self._good.move_to_end(credential)
            if len(self._good) > self._max_tracked:
                self._good.popitem(last=False)
            _refuse(self._requests.take(person, now=self._monotonic()), what=_REQUESTS)


def _refuse(wait_s: float, *, what: str) -> None:
    if wait_s > 0.0:
        raise RateLimitedError(f"too many {what}; wait", retry_after_s=math.ceil(wait_s))


def _network(address: str) -> str:
    """What one holder of addresses holds: one IPv4 address, or 64 bits of IPv6."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)
