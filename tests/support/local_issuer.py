"""An identity provider on loopback: real sockets and TLS, its own certificate and keys; and what an attacker makes."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import ipaddress
import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

Part = Mapping[str, object] | bytes
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
DISCOVERY = "/realms/study/.well-known/openid-configuration"
JWKS = "/realms/study/keys"
AUDIENCE = "wardround"


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def number(value: int, n_bytes: int | None = None) -> str:
    return encoded(value.to_bytes(n_bytes or (value.bit_length() + 7) // 8, "big"))


def new_rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def new_ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def jwk_of(key: PrivateKey, kid: str) -> dict[str, object]:
    """RFC 7518 sections 6.2 and 6.3, written out here: the program reads them with a library."""
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        return {"kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "n": number(numbers.n), "e": number(numbers.e)}
    point = key.public_key().public_numbers()
    xy = {"x": number(point.x, 32), "y": number(point.y, 32)}
    return {"kty": "EC", "kid": kid, "use": "sig", "alg": "ES256", "crv": "P-256", **xy}


def signature_of(key: PrivateKey, content: bytes) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(content, padding.PKCS1v15(), hashes.SHA256())
    r, s = decode_dss_signature(key.sign(content, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def compact(
    header: Mapping[str, object] | bytes, claims: Mapping[str, object] | bytes, sign: Callable[[bytes], bytes]
) -> str:
    """A JWS in its compact form, whoever signs it and whatever stands in it."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    content = ".".join(encoded(part) for part in parts).encode()
    return content.decode() + "." + encoded(sign(content))


def hs256(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda content: hmac.new(secret, content, hashlib.sha256).digest()


def public_pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@dataclass
class Answer:
    """What a path is answered with."""

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.0


class LocalIssuer:
    """Serves discovery and keys; counts who asks; answers as the test says."""

    def __init__(self, folder: Path) -> None:
        self.rsa, self.ec = new_rsa_key(), new_ec_key()
        self.keys: list[dict[str, object]] = [jwk_of(self.rsa, "rsa-1"), jwk_of(self.ec, "ec-1")]
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.ca_file = folder / "issuer.pem"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._write_certificate(folder))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.host = f"127.0.0.1:{self.port}"
        self.issuer = f"https://{self.host}/realms/study"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def n_asked(self, path: str) -> int:
        return self.asked.count(path)

    def answer_for(self, path: str) -> Answer:
        if path in self.answers:
            return self.answers[path]
        if path == DISCOVERY:
            document = {"issuer": self.issuer, "jwks_uri": f"https://{self.host}{JWKS}"}
            return Answer(json.dumps(document).encode())
        if path == JWKS:
            return Answer(json.dumps({"keys": self.keys}).encode())
        return Answer(status=404)

    def claims(self, **changes: object) -> dict[str, object]:
        """Those of an auditor; a change to None takes the claim away."""
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": "ada",
            "iat": now,
            "exp": now + 300,
            "roles": ["study-auditors"],
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self,
        *,
        key: PrivateKey | None = None,
        header: Mapping[str, object] | None = None,
        sign: Callable[[bytes], bytes] | None = None,
        **changes: object,
    ) -> str:
        """A token, by default a good one; its claims, its header and who signs it can be changed."""
        signer = key or self.rsa
        is_rsa = isinstance(signer, rsa.RSAPrivateKey)
        head = {
            "alg": "RS256" if is_rsa else "ES256",
            "kid": "rsa-1" if is_rsa else "ec-1",
            "typ": "JWT",
            **(header or {}),
        }
        return compact(
            {name: value for name, value in head.items() if value is not None},
            self.claims(**changes),
            sign or (lambda content: signature_of(signer, content)),
        )

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                answer = issuer.answer_for(self.path)
                time.sleep(answer.pause_s)
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.content)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    self.wfile.write(answer.content)
                except OSError:
                    return  # whoever asked has seen enough

            def log_message(self, *_: object) -> None:
                return

        return Handler

    def _write_certificate(self, folder: Path) -> Path:
        key = new_ec_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"local issuer {secrets.token_hex(4)}")])
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.ca_file.write_bytes(pem)
        both = folder / "issuer-with-key.pem"
        both.write_bytes(
            pem
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return both
