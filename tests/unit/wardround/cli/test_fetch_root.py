"""What ``login --root-fingerprint`` believes: one certificate by its digest, whoever stands in between."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx
import pytest
from cryptography import x509

from fl_protocol.pki.certificates import Validity, make_ca_certificate, new_serial
from fl_protocol.pki.keys import generate_private_key
from fl_protocol.pki.tls import certificate_fingerprint, pem_from_certificate
from wardround.cli.account import fetch_root
from wardround.errors import EvidenceFaultError

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def root(name: str) -> x509.Certificate:
    validity = Validity(not_before=NOW, not_after=NOW + timedelta(days=1))
    return make_ca_certificate(generate_private_key(), common_name=name, validity=validity, serial=new_serial())


def answering(pem: bytes) -> httpx.MockTransport:
    return httpx.MockTransport(lambda _: httpx.Response(200, content=pem))


def test_root_of_somebody_in_between_behind_the_right_one_is_not_kept() -> None:
    right, his = root("consortium"), root("between")
    sha256 = certificate_fingerprint(right)
    both = pem_from_certificate(right) + pem_from_certificate(his)
    kept = fetch_root("https://c.test", expected_sha256=sha256, transport=answering(both))
    assert x509.load_pem_x509_certificates(kept) == [right]


def test_another_root_is_refused() -> None:
    right, his = root("consortium"), root("between")
    with pytest.raises(EvidenceFaultError):
        fetch_root(
            "https://c.test",
            expected_sha256=certificate_fingerprint(right),
            transport=answering(pem_from_certificate(his) + pem_from_certificate(right)),
        )
