"""A proxy that inspects TLS, as hospitals have it.

It takes CONNECT, shows a certificate that its own authority makes on the spot with the names of the real one, and
passes on both ways what is said, after it was read.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from pathlib import Path

from cryptography import x509

from tests.support.gateway import Pki
from tests.support.relay import ConnectProxy


class InspectingProxy(ConnectProxy):
    """Opens every tunnel. ``heard`` is what sites said inside, which should be nothing of theirs."""

    def __init__(self, allowed_ports: set[int], *, authority: Pki, folder: Path) -> None:
        super().__init__(allowed_ports)
        self._authority = authority
        self._folder = folder
        self.heard: list[bytes] = []

    def before_tunnel(self, writer: asyncio.StreamWriter) -> None:
        # What the site says first belongs to TLS, and must not be read by the stream before TLS is there.
        writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def join(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str, *, first: bytes = b""
    ) -> None:
        del first
        host, _, port = target.rpartition(":")
        outward = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        outward.check_hostname = False
        outward.verify_mode = ssl.CERT_NONE
        outward.set_alpn_protocols(["h2", "http/1.1"])
        there, back = await asyncio.open_connection(host, int(port), ssl=outward, server_hostname="inspected.invalid")
        shown = back.get_extra_info("ssl_object")
        der = shown.getpeercert(binary_form=True)
        plain = writer.transport
        try:
            await writer.start_tls(self._inward(x509.load_der_x509_certificate(der), shown.selected_alpn_protocol()))
            await asyncio.gather(self._pass_on(reader, back, keeps=True), self._pass_on(there, writer, keeps=False))
        finally:
            for transport in (back.transport, writer.transport, plain):
                transport.abort()

    def _inward(self, certificate: x509.Certificate, protocol: str | None) -> ssl.SSLContext:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        made = self._authority.server(*names.get_values_for_type(x509.DNSName))
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._authority.write(folder, made))
        context.set_alpn_protocols([protocol] if protocol else ["http/1.1"])
        return context

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, keeps: bool) -> None:
        try:
            while data := await reader.read(65536):
                if keeps:
                    self.heard.append(data)
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()
