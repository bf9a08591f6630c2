"""The site's two private keys: made here, kept in files that only this user can read, never sent and never shown.

The signing key is the site's lasting identity (peers pin it); the TLS key only carries connections and may be renewed.
Invariant: they are two keys, so that a proxy in the hospital's DMZ that ends TLS cannot sign for the site.
"""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fl_protocol.ids import Sha256Hex
from fl_protocol.pki.errors import PrivateKeyInvalidError
from fl_protocol.pki.keys import generate_private_key, pem_from_private_key, private_key_from_pem
from fl_protocol.signing.keys import EcdsaSigner, spki_fingerprint
from site_agent.durable_files import write_whole
from site_agent.enrolment.errors import KeyDamagedError, KeyMissingError, KeyPermissionsError
from site_agent.folder import SiteFolder

CERTIFICATE_BEGINS = b"-----BEGIN CERTIFICATE-----"

_FOR_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class KeyStore:
    """Reads and makes the keys of one state folder. Its repr shows no key."""

    def __init__(self, folder: SiteFolder) -> None:
        """Name the folder; nothing is read yet."""
        self._folder = folder

    def ensure_keys(self) -> None:
        """Make the keys that are not there yet; keys that are there stay, so that a retry enrols the same ones.

        Raises:
            KeyPermissionsError: what is there can be read by others.
            KeyDamagedError: what is there is no key.
        """
        keys_dir = self._folder.keys_dir
        keys_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(keys_dir, advice=f"Run: chmod 700 {keys_dir}")
        for left in (self._folder.tls_identity, self._folder.previous_tls_identity, self._folder.renewal):
            # Of an enrolment before: a new one is asked for with the key in its own file.
            left.unlink(missing_ok=True)
        for path in (self._folder.signing_key, self._folder.tls_key):
            if path.exists():
                _load_private_key(path)
            else:
                write_whole(path, pem_from_private_key(generate_private_key()), mode=0o600)

    def load_signer(self) -> EcdsaSigner:
        """The signer over the site's signing key.

        Raises:
            KeyMissingError: there is none.
            KeyPermissionsError: others can read it.
            KeyDamagedError: the file holds no P-256 key.
        """
        return EcdsaSigner(_load_private_key(self._folder.signing_key))

    def ensure_private(self) -> None:
        """Check both keys without keeping them. Raises like ``load_signer``."""
        _check_private(self._folder.keys_dir, advice=f"Run: chmod 700 {self._folder.keys_dir}")
        self.load_signer()
        self.load_tls_key()

    def load_tls_key(self) -> ec.EllipticCurvePrivateKey:
        """The TLS key: that of the last renewal, or of enrolment. Raises like ``load_signer``."""
        renewed = self._folder.tls_identity
        return _load_private_key(renewed if renewed.exists() else self._folder.tls_key)

    def load_tls_key_pem(self) -> bytes:
        """The TLS key as PEM, for gRPC's credentials. Raises like ``load_signer``."""
        return pem_from_private_key(self.load_tls_key())

    def signing_key_sha256(self) -> Sha256Hex:
        """The pin by which peers know this site. Raises like ``load_signer``."""
        return spki_fingerprint(self.load_signer().spki_der)


def _load_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        _check_private(path, advice=f"Run: chmod 600 {path}")
        # Behind a renewed key stands its certificate.
        pem = path.read_bytes().partition(CERTIFICATE_BEGINS)[0]
    except FileNotFoundError as error:
        advice = "Run 'wardround-site enrol', or restore the keys folder from this site's own backup."
        raise KeyMissingError("a private key is missing", advice=advice, file=path.name) from error
    except PermissionError as error:
        advice = "Run this command as the user that enrolled the site."
        raise KeyPermissionsError("a private key cannot be read", advice=advice, file=path.name) from error
    try:
        return private_key_from_pem(pem)
    except PrivateKeyInvalidError as error:
        advice = "Restore the keys folder from this site's own backup; without its signing key it enrols as a new site."
        raise KeyDamagedError("a key file holds no P-256 private key", advice=advice, file=path.name) from error


def _check_private(path: Path, *, advice: str) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _FOR_OTHERS:
        message = "other users of this machine can open a private key"
        raise KeyPermissionsError(message, advice=advice, file=path.name, mode=f"{mode:04o}")
