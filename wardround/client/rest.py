"""One coordinator over HTTPS: requests that may be repeated, pages, blobs, downloads; every failure a typed error.

Trusts the pinned root certificate and nothing that the operating system trusts besides. Knows no noun of the interface:
the commands name paths.
"""

from __future__ import annotations

import hashlib
import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from wardround.client.connection import Connection
from wardround.client.problems import error_from_response
from wardround.documents import Document, as_document, documents_of, optional_text_of
from wardround.errors import CommandError, ResponseUnreadableError, UnavailableError, UsageInvalidError

PAGE_LIMIT = 200
TIMEOUT_S = 30.0
N_ATTEMPTS = 4
_FIRST_PAUSE_S = 0.3
_LONGEST_PAUSE_S = 10.0


class RestClient:
    """A signed-in user's requests to one coordinator.

    Invariant: a write carries one Idempotency-Key through all its repetitions, so a repeated write happens once.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        transport: httpx.BaseTransport | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """``transport`` replaces the network and ``pause`` the waiting, in tests."""
        self.url = connection.url
        self._pause = pause
        self._http = httpx.Client(
            base_url=connection.url,
            headers={"Authorization": f"Bearer {connection.token}", "Accept": "application/json"},
            timeout=TIMEOUT_S,
            transport=transport,
            verify=True if transport is not None else tls_context(connection.root_file),
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, **query: str | int) -> Document:
        """The object at ``path``."""
        return self._document(self._request("GET", path, query=query))

    def pages(self, path: str, **query: str | int) -> Iterator[Document]:
        """Every item of a list, page after page."""
        cursor: str | None = None
        while True:
            onward: dict[str, str | int] = {"cursor": cursor} if cursor is not None else {}
            page = self.get(path, limit=PAGE_LIMIT, **query, **onward)
            yield from documents_of(page, "items")
            following = optional_text_of(page, "next_cursor")
            if following is None:
                return
            if following == cursor:
                raise ResponseUnreadableError("the coordinator gave the same page twice", path=path)
            cursor = following

    def post(self, path: str, document: Mapping[str, object] | None = None) -> Document:
        """Write, once, and return the answer."""
        return self._document(self._request("POST", path, json=dict(document or {}), key=str(uuid.uuid4())))

    def delete(self, path: str) -> None:
        """Remove what is at ``path``, once."""
        self._request("DELETE", path, key=str(uuid.uuid4()))

    def put_blob(self, content: bytes) -> str:
        """Upload bytes under their digest, which is returned."""
        sha256 = hashlib.sha256(content).hexdigest()
        self._request("PUT", f"/api/v1/blobs/{sha256}", content=content, key=sha256)
        return sha256

    def text(self, path: str) -> str:
        """What is at ``path``, as text."""
        return self._request("GET", path).text

    def content(self, path: str) -> bytes:
        """What is at ``path``, as bytes."""
        return self._request("GET", path).content

    def stream(self, path: str) -> Iterator[bytes]:
        """What is at ``path``, in pieces as they arrive."""
        try:
            with self._http.stream("GET", path) as response:
                if response.is_error:
                    raise error_from_response(response.status_code, response.read())
                yield from response.iter_bytes()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def lines(self, path: str) -> Iterator[str]:
        """The lines of an answer that stays open, for as long as the coordinator sends something every half minute."""
        try:
            with self._http.stream("GET", path, headers={"Accept": "text/event-stream"}) as response:
                if response.is_error:
                    raise error_from_response(response.status_code, response.read())
                yield from response.iter_lines()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def download(self, path: str, target: Path) -> None:
        """Write what is at ``path`` into a new file, whole or not at all."""
        partial = target.with_name(f".{target.name}.partial")
        try:
            with self._http.stream("GET", path) as response:
                if response.is_error:
                    raise error_from_response(response.status_code, response.read())
                with partial.open("wb") as file:
                    for chunk in response.iter_bytes():
                        file.write(chunk)
            partial.replace(target)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        finally:
            partial.unlink(missing_ok=True)

    def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        json: Mapping[str, object] | None = None,
        content: bytes | None = None,
        key: str | None = None,
    ) -> httpx.Response:
        headers = {"Idempotency-Key": key} if key is not None else {}
        if content is not None:
            headers["Content-Type"] = "application/octet-stream"
        failure: CommandError | None = None
        asked_s = 0.0
        for attempt in range(N_ATTEMPTS):
            if attempt:
                self._pause(max(_FIRST_PAUSE_S * 2 ** (attempt - 1), asked_s))
            try:
                response = self._http.request(method, path, params=query, json=json, content=content, headers=headers)
            except httpx.TransportError as error:
                failure = self._unreachable(error)
                if is_certificate_failure(error):
                    break
                continue
            if not response.is_error:
                return response
            failure = error_from_response(response.status_code, response.content)
            asked_s = _seconds_asked_for(response)
            if not isinstance(failure, UnavailableError):
                break
        assert failure is not None
        raise failure

    def _document(self, response: httpx.Response) -> Document:
        if response.status_code == 204 or not response.content:
            return {}
        try:
            value = response.json()
        except ValueError as error:
            raise ResponseUnreadableError("the coordinator did not answer with JSON", url=str(response.url)) from error
        return as_document(value, source="the coordinator's answer")

    def _unreachable(self, error: httpx.TransportError) -> CommandError:
        if is_certificate_failure(error):
            return UsageInvalidError(
                f"{self.url} shows a certificate that the pinned root did not sign",
                advice="Compare the root with whoever runs the coordinator, then: wardround login URL --root FILE",
                code="certificate-not-trusted",
            )
        if isinstance(error, httpx.TimeoutException):
            return UnavailableError(f"{self.url} did not answer within {TIMEOUT_S:.0f} s", advice="Try again.")
        return UnavailableError(
            f"{self.url} does not answer ({error})", advice="Is it running? wardround-coordinator serve --config FILE"
        )


def _seconds_asked_for(response: httpx.Response) -> float:
    """``Retry-After`` in seconds, as far as one waits for that without a word."""
    text = response.headers.get("Retry-After", "")
    return min(float(text), _LONGEST_PAUSE_S) if text.isdecimal() else 0.0


def tls_context(root_file: Path) -> ssl.SSLContext:
    """A context that trusts the certificates in one file and nothing else.

    Raises:
        UsageInvalidError: the file holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=str(root_file))
    except (OSError, ssl.SSLError) as error:
        raise UsageInvalidError(
            f"{root_file} is no certificate in PEM form", advice="Take root.pem from the coordinator's folder."
        ) from error


def is_certificate_failure(error: BaseException) -> bool:
    """Whether a failure to connect was a certificate that is not trusted."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return "CERTIFICATE_VERIFY_FAILED" in str(error)
