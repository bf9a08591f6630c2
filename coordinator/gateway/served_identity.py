"""What a listener shows and whom it believes, while both may change under it: a root is replaced without an outage.

New handshakes see the present state; connections that stand are left alone. gRPC asks at each handshake; Python's own
TLS contexts are told (``refresh``), and go on believing a root that was retired until the process starts again: behind
them every certificate is looked up by its fingerprint anyway.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import grpc

from coordinator.ca.authority import CaSlots, CertificateAuthority, ServerIdentity
from fl_protocol.pki.contexts import load_identity

_ISSUE_AGAIN = timedelta(days=90)
"""Well before a server's certificate ends, in a process that runs for long."""


class ServedIdentity:
    """The server certificate of one listener's names. Safe to ask from any thread."""

    def __init__(self, authority: CertificateAuthority, *, names: Sequence[str], now: Callable[[], datetime]) -> None:
        """Issue the first one."""
        self._authority = authority
        self._names = tuple(names)
        self._now = now
        self._lock = threading.Lock()
        self._is_new = True
        self._issue()

    def current(self) -> tuple[ServerIdentity, bytes, bool]:
        """The certificate, the roots to believe (PEM), and whether that is another state than at the last call."""
        with self._lock:
            is_other = self._authority.slots is not self._slots or self._now() - self._issued_at >= _ISSUE_AGAIN
            if is_other:
                self._issue()
            has_changed, self._is_new = self._is_new, False
            return self._identity, self._authority.trusted_pem, has_changed

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Mutual TLS, looked up anew at each handshake."""
        identity, roots, _ = self.current()

        def fetch() -> grpc.ServerCertificateConfiguration | None:  # None: go on with what there is
            identity, roots, has_changed = self.current()
            return _configuration(identity, roots) if has_changed else None

        return grpc.dynamic_ssl_server_credentials(
            _configuration(identity, roots),
            fetch,  # type: ignore[arg-type] # the stubs forget that it may say that nothing changed
            require_client_authentication=True,
        )

    def refresh(self, context: ssl.SSLContext, *, believes_roots: bool) -> bool:
        """Bring a context up to date; whether there was anything new."""
        identity, roots, has_changed = self.current()
        if not has_changed:
            return False
        load_identity(context, certificate_pem=identity.certificate_pem, private_key_pem=identity.key_pem)
        if believes_roots:
            context.load_verify_locations(cadata=roots.decode("ascii"))
        return True

    def _issue(self) -> None:
        self._slots: CaSlots = self._authority.slots
        self._issued_at = self._now()
        self._identity = self._authority.issue_server_certificate(names=self._names, now=self._issued_at)
        self._is_new = True


def _configuration(identity: ServerIdentity, roots: bytes) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key_pem, identity.certificate_pem)], root_certificates=roots
    )
