"""Fetch a JSON document from the issuer: over TLS, from there and from nowhere else, small, and soon.

Safety: no redirect is followed, and nothing compressed is unpacked, so that an answer is as long as it is on the wire.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import httpx

from coordinator.oidc.rules import IdentityProviderUnavailableError

MAX_BYTES = 256 * 1024
_TIMEOUT_S = 5.0
_PATIENCE_S = 10.0

Document = Mapping[str, object]


class Fetcher(Protocol):
    """Where documents come from."""

    def fetch(self, url: str) -> Document:
        """The object at ``url``. Raises IdentityProviderUnavailableError."""
        ...


class HttpsFetcher:
    """Documents over HTTPS. A connection a document: they are fetched once an hour."""

    def __init__(self, *, ca_file: Path | None = None) -> None:
        """Trust the system's certificates, or those of one file instead. Raises OSError or ssl.SSLError."""
        self._trusted = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))

    def fetch(self, url: str) -> Document:
        """The object at ``url``.

        Raises:
            IdentityProviderUnavailableError: it does not come, or something else does; ``why`` says which.
        """
        try:
            content = self._content(url)
            document = json.loads(content)
        except httpx.HTTPError as error:
            raise _unavailable(url, why=type(error).__name__) from error
        except (ValueError, RecursionError) as error:
            raise _unavailable(url, why="not-json") from error
        if not isinstance(document, dict):
            raise _unavailable(url, why="not-an-object")
        return document

    def _content(self, url: str) -> bytes:
        content = bytearray()
        until = time.monotonic() + _PATIENCE_S
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        with (
            httpx.Client(verify=self._trusted, timeout=_TIMEOUT_S, follow_redirects=False) as client,
            client.stream("GET", url, headers=headers) as answer,
        ):
            if answer.status_code != httpx.codes.OK:
                raise _unavailable(url, why=f"status-{answer.status_code}")
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                raise _unavailable(url, why="compressed")
            for chunk in answer.iter_raw():
                content += chunk
                if len(content) > MAX_BYTES:
                    raise _unavailable(url, why="too-large")
                if time.monotonic() > until:
                    raise _unavailable(url, why="too-slow")
        return bytes(content)


def _unavailable(url: str, *, why: str) -> IdentityProviderUnavailableError:
    return IdentityProviderUnavailableError(
        "the identity provider does not answer as it should; try again", url=url, why=why
    )
