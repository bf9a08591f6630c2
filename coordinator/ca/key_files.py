"""Private keys as files: written once, readable by their owner only, refused when everybody may read them.

Knows the file system and PEM; knows nothing of what a key is for.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator.ca.errors import KeyFileExistsError, KeyFileExposedError, KeyFileInvalidError, KeyFileMissingError
from fl_protocol.pki.errors import CertificateInvalidError, PrivateKeyInvalidError
from fl_protocol.pki.keys import private_key_from_pem
from fl_protocol.pki.tls import certificate_from_pem


def write_new_file(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file that was not there before, durably, with exactly these permissions.

    Raises:
        KeyFileExistsError: the file exists; a key is never overwritten.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise KeyFileExistsError("the file is already there; it is not overwritten", path=str(path)) from error
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file in one step: readers see the old content or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    write_new_file(temporary, content, mode=mode)
    temporary.replace(path)


def read_file(path: Path) -> bytes:
    """The content of a public file.

    Raises:
        KeyFileMissingError: it is not there.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        message = "the file is missing; check its name, or restore it from a backup where it is the coordinator's own"
        raise KeyFileMissingError(message, path=str(path)) from error


def read_private_file(path: Path) -> bytes:
    """The content of a file that only its owner (and at most its group) may read.

    Raises:
        KeyFileMissingError: it is not there.
        KeyFileExposedError: every user of the machine may read or write it.
    """
    content = read_file(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & stat.S_IRWXO:
        raise KeyFileExposedError("everybody may use this file; run `chmod 600` on it", path=str(path), mode=oct(mode))
    return content


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a P-256 private key.

    Raises:
        KeyFileMissingError: it is not there.
        KeyFileExposedError: everybody may read it.
        KeyFileInvalidError: it holds no P-256 key in PEM.
    """
    content = read_private_file(path)
    try:
        return private_key_from_pem(content)
    except PrivateKeyInvalidError as error:
        raise KeyFileInvalidError(f"the file holds no usable key: {error.message}", path=str(path)) from error


def load_certificate(path: Path) -> x509.Certificate:
    """Read a certificate.

    Raises:
        KeyFileMissingError: it is not there.
        KeyFileInvalidError: it holds no certificate in PEM.
    """
    try:
        return certificate_from_pem(read_file(path))
    except CertificateInvalidError as error:
        raise KeyFileInvalidError("the file holds no certificate in PEM", path=str(path)) from error
