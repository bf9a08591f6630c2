"""With ``database.root_file`` the coordinator speaks to the server that it means, by TLS, or to none."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from coordinator.db.engines import engine_from_url
from coordinator.db.notices import NoticeBoard
from coordinator.db.tx import Database
from coordinator.errors import DatabaseUnavailableError
from fl_protocol.pki.certificates import LeafNames, Validity, issue_leaf, make_ca_certificate, new_serial
from fl_protocol.pki.keys import generate_private_key, pem_from_private_key
from fl_protocol.pki.tls import pem_from_certificate
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.system


class Authority:
    """A root, and certificates of it."""

    def __init__(self) -> None:
        now = datetime.now(UTC).replace(microsecond=0)
        self._validity = Validity(not_before=now - timedelta(hours=1), not_after=now + timedelta(days=1))
        self._key = generate_private_key()
        self._root = make_ca_certificate(self._key, common_name="Test", validity=self._validity, serial=new_serial())

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=pem_from_certificate(self._root).decode())

    def certificate(self, names: LeafNames) -> tuple[bytes, bytes]:
        key = generate_private_key()
        made = issue_leaf(
            self._key,
            self._root,
            public_key=key.public_key(),
            common_name="postgres",
            names=names,
            validity=self._validity,
            serial=new_serial(),
        )
        return pem_from_certificate(made), pem_from_private_key(key)


HERE = LeafNames(ip_addresses=("127.0.0.1",))


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    made = PostgresServer.create()
    yield made
    made.dispose()


def is_encrypted(session: Session) -> bool:
    return bool(session.scalar(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")))


def ask(server: PostgresServer, trust: ssl.SSLContext | None) -> bool:
    database = Database(engine_from_url(server.url, trust=trust), patience_s=0.1)
    try:
        return database.read("is-encrypted", is_encrypted)
    finally:
        database.dispose()


def test_server_of_that_root_and_name_is_believed_and_the_line_is_encrypted(server: PostgresServer) -> None:
    authority = Authority()
    certificate, key = authority.certificate(HERE)
    server.serve_tls(certificate_pem=certificate, key_pem=key)
    assert ask(server, authority.trust())


def test_server_of_another_root_is_not_spoken_to(server: PostgresServer) -> None:
    certificate, key = Authority().certificate(HERE)
    server.serve_tls(certificate_pem=certificate, key_pem=key)
    with pytest.raises(DatabaseUnavailableError) as caught:
        ask(server, Authority().trust())
    assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value.facts["error"])


def test_server_of_another_name_is_not_spoken_to(server: PostgresServer) -> None:
    authority = Authority()
    certificate, key = authority.certificate(LeafNames(dns_names=("elsewhere.example",)))
    server.serve_tls(certificate_pem=certificate, key_pem=key)
    with pytest.raises(DatabaseUnavailableError) as caught:
        ask(server, authority.trust())
    assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value.facts["error"])


def test_server_without_tls_is_not_spoken_to_in_the_clear(server: PostgresServer) -> None:
    assert not ask(server, None), "the yardstick: without a root it would be"
    with pytest.raises(DatabaseUnavailableError) as caught:
        ask(server, Authority().trust())
    assert "SSL" in str(caught.value.facts["error"])


async def test_notices_are_heard_over_the_same_terms(server: PostgresServer) -> None:
    authority = Authority()
    certificate, key = authority.certificate(HERE)
    await asyncio.to_thread(server.serve_tls, certificate_pem=certificate, key_pem=key)
    database = Database(engine_from_url(server.url, trust=authority.trust()))

    def board(trust: ssl.SSLContext) -> NoticeBoard:
        return NoticeBoard(database, url=server.url, hear=lambda _: None, known=frozenset({"driver"}), trust=trust)

    good, bad = board(authority.trust()), board(Authority().trust())
    running = [asyncio.create_task(each.run()) for each in (good, bad)]
    try:
        await asyncio.wait_for(good.is_listening.wait(), 10)
        assert not bad.is_listening.is_set()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await asyncio.to_thread(database.dispose)
