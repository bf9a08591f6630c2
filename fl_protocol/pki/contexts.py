"""TLS contexts of Python's own library, for the second transport and for whoever looks at a connection.

A private key that is in memory reaches OpenSSL through a file that only this process sees.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def client_context(*, root_pem: bytes, certificate_pem: bytes, private_key_pem: bytes) -> ssl.SSLContext:
    """A client of the coordinator: believes this root and nothing else, and shows this certificate.

    Raises:
        ssl.SSLError: the PEM bytes are none, or the key is another's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=root_pem.decode("ascii"))
    load_identity(context, certificate_pem=certificate_pem, private_key_pem=private_key_pem)
    return context


def server_context(*, root_pem: bytes, certificate_pem: bytes, private_key_pem: bytes) -> ssl.SSLContext:
    """A server that completes no handshake without a client certificate of this root.

    Raises:
        ssl.SSLError: the PEM bytes are none, or the key is another's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=root_pem.decode("ascii"))
    context.set_alpn_protocols(["http/1.1"])
    load_identity(context, certificate_pem=certificate_pem, private_key_pem=private_key_pem)
    return context


def open_server_context(*, certificate_pem: bytes, private_key_pem: bytes) -> ssl.SSLContext:
    """A server that asks for no certificate: for the one call of those who have none yet.

    Raises:
        ssl.SSLError: the PEM bytes are none, or the key is another's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_identity(context, certificate_pem=certificate_pem, private_key_pem=private_key_pem)
    return context


def load_identity(context: ssl.SSLContext, *, certificate_pem: bytes, private_key_pem: bytes) -> None:
    """Give a context its certificate and key. Raises ssl.SSLError."""
    with _only_here(certificate_pem + b"\n" + private_key_pem) as path:
        context.load_cert_chain(path)


@contextmanager
def _only_here(content: bytes) -> Iterator[Path]:
    """A file with this content for as long as it is needed: in memory where the system can, else 0600 and deleted."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
        try:
            with open(descriptor, "wb", closefd=False) as stream:  # a descriptor, not a path
                stream.write(content)
            yield Path(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory(prefix="wardround-") as folder:
        path = Path(folder) / "identity.pem"
        path.touch(mode=0o600)
        path.write_bytes(content)
        yield path
