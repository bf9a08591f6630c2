# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
"""The agent's renewal against a real coordinator: over both listeners, through crashes, and with uploads under way."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from fl_protocol.audit.events import AuditFact, AuditKind
from fl_protocol.pki.keys import key_fingerprint
from fl_protocol.pki.tls import certificate_from_pem
from fl_protocol.signing.site_statement import SiteStatementKind
from site_agent.enrolment import renewal, renewal_files, statement_book
from site_agent.enrolment.code import code_from_text
from site_agent.enrolment.enrol import EnrolmentOrder, enrol_site
from site_agent.enrolment.errors import (
    EnrolmentRefusedError,
    ListenerCertificateError,
    RecoveryAddressMissingError,
)
from site_agent.enrolment.identity_file import load_identity, write_identity_document
from site_agent.enrolment.keystore import KeyStore
from site_agent.enrolment.listener import NetworkEnrolmentListener
from site_agent.enrolment.renewal import IdentityKeeper, RenewalSeams
from site_agent.errors import CoordinatorRefusedError
from site_agent.folder import SiteFolder
from site_agent.link.identity_calls import IdentityCalls, RenewalAnswer, RenewalRequest
from site_agent.link.link_channel import LinkChannel
from site_agent.settings import load_settings
from site_agent.supervision.seams import SystemEntropy
from site_agent.way_out import find_way_out


@dataclass
class ShiftedClock:
    """This machine's clock, moved."""

    shift: timedelta = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.shift


@dataclass
class Recorded:
    events: list[tuple[AuditKind, dict[str, AuditFact]]] = field(default_factory=list)

    def __call__(self, kind: AuditKind, facts: dict[str, AuditFact]) -> None:
        self.events.append((kind, facts))

    @property
    def kinds(self) -> list[AuditKind]:
        return [kind for kind, _ in self.events]


@pytest.fixture
def new_folder(invite, tmp_path) -> Callable[[str], SiteFolder]:
    """An enrolled folder, as ``wardround-site enrol`` leaves it."""

    return lambda name: enrolled_folder(tmp_path / name, invite(name))


def enrolled_folder(root: Path, invitation: dict[str, str]) -> SiteFolder:
    folder = SiteFolder(root=root)
    folder.root.mkdir(mode=0o700, exist_ok=True)
    order = EnrolmentOrder(
        coordinator_address=invitation["enrolment_address"],
        code=code_from_text(invitation["code"]),
        root_fingerprint=invitation["root_fingerprint"],
        agent_version="test",
    )
    enrol_site(folder, order, listener=NetworkEnrolmentListener(), now=datetime.now(UTC), record=lambda *_: None)
    return folder


@asynccontextmanager
async def keeping(
    folder: SiteFolder, *, clock: ShiftedClock | None = None, record: Recorded | None = None, listener: Any = None
) -> AsyncIterator[IdentityKeeper]:
    """One agent process's keeper over a link of its own."""
    settings, identity = load_settings(folder.root), load_identity(folder)
    link = LinkChannel(find_way_out(settings, identity, environment={}).link_options(), clock_s=time.monotonic)
    seams = RenewalSeams(
        folder=folder,
        signer=KeyStore(folder).load_signer(),
        clock=clock or ShiftedClock(),
        entropy=SystemEntropy(),
        calls=IdentityCalls(link),
        listener=listener or NetworkEnrolmentListener(),
        record=record or Recorded(),
        switch=lambda found: link.renew(find_way_out(settings, found, environment={}).link_options()),
        agent_version="test",
    )
    try:
        yield IdentityKeeper(seams, identity)
    finally:
        await link.close()


def key_in_use(folder: SiteFolder) -> str:
    return key_fingerprint(KeyStore(folder).load_tls_key().public_key())


def secrets_in(folder: SiteFolder) -> set[str]:
    return {path.name for path in folder.keys_dir.iterdir()} - {"statements.json"}


async def test_renewal_makes_a_fresh_key_keeps_the_signing_key_and_erases_the_old_one(new_folder) -> None:
    folder = await asyncio.to_thread(new_folder, "renews")
    before, signing = key_in_use(folder), folder.signing_key.read_bytes()
    old_key, record = folder.tls_key.read_bytes(), Recorded()
    assert certificate_from_pem(load_identity(folder).certificate_pem).not_valid_after_utc < datetime.now(
        UTC
    ) + timedelta(hours=72)
    async with keeping(folder, record=record) as keeper:
        await keeper.check_in(SiteStatementKind.STARTED)
        renewed = await keeper.renew()
        assert await keeper.check_in(SiteStatementKind.PRESENT) == 3600.0
    assert key_in_use(folder) != before
    assert certificate_from_pem(renewed.certificate_pem).public_key() == KeyStore(folder).load_tls_key().public_key()
    assert load_identity(folder) == renewed
    assert folder.signing_key.read_bytes() == signing
    assert secrets_in(folder) == {"signing.pem", "tls.identity.pem"}
    assert not any(old_key.splitlines()[1] in path.read_bytes() for path in folder.keys_dir.iterdir())
    assert {oct(path.stat().st_mode & 0o777) for path in folder.keys_dir.iterdir()} == {"0o600"}
    assert record.kinds == [AuditKind.CERTIFICATE_RENEWED]
    assert record.events[0][1]["by"] == "certificate"


class DiedError(BaseException):
    """The process is gone here: nothing catches it."""


POINTS = {
    "next key on the disk": (statement_book.StatementBook, "next_statement", "before"),
    "number used up, nothing asked": (renewal_files, "make_csr", "after"),
    "asked for, not sent": (IdentityCalls, "renew", "before"),
    "answer lost": (IdentityCalls, "renew", "after"),
    "answer checked, not kept": (renewal, "keep_renewed", "before"),
    "kept, and what was asked not dropped": (renewal_files, "drop_renewal", "before"),
    "kept, nobody told": (renewal, "write_identity_document", "before"),
    "switched, not used": (IdentityCalls, "check_in", "before"),
    "used, the word lost": (IdentityCalls, "check_in", "after"),
    "used, the old key not erased": (renewal, "confirm_renewed", "before"),
}


@pytest.mark.parametrize("point", POINTS)
async def test_agent_that_dies_anywhere_in_a_renewal_renews_at_its_next_start_and_is_no_copy(
    new_folder, admin, point
) -> None:
    name = f"dies-{list(POINTS).index(point)}"
    folder = await asyncio.to_thread(new_folder, name)
    owner, attribute, when = POINTS[point]
    call = getattr(owner, attribute)

    if asyncio.iscoroutinefunction(call):

        async def dying(*arguments: Any, **named: Any) -> Any:
            if when == "after":
                await call(*arguments, **named)
            raise DiedError
    else:

        def dying(*arguments: Any, **named: Any) -> Any:
            if when == "after":
                call(*arguments, **named)
            raise DiedError

    async with keeping(folder) as keeper:
        with mock.patch.object(owner, attribute, dying), pytest.raises(DiedError):
            await keeper.renew()
    at_death = key_in_use(folder)
    async with keeping(folder) as keeper:
        await keeper.check_in(SiteStatementKind.STARTED)
        await keeper.renew()
    assert key_in_use(folder) != at_death
    assert secrets_in(folder) == {"signing.pem", "tls.identity.pem"}
    shown = (await asyncio.to_thread(admin.get, f"/api/v1/sites/{name}")).json()
    assert shown["state"] == "ENROLLED"


@pytest.fixture(scope="module")
def ended(tmp_path_factory, make_coordinator) -> Iterator[Callable[[str], SiteFolder]]:
    """Folders whose certificates lived five seconds, at a coordinator of their own, and have ended."""
    brief = make_coordinator(
        directory=tmp_path_factory.mktemp("brief") / "state",
        environment={"WARDROUND_IDENTITY__SITE_CERTIFICATE_S": "5"},
    )
    brief.init()
    brief.start()
    folders = {}
    with brief.client(brief.admin_token()) as admin:
        for name in ("away", "suspended-away", "lured"):
            invitation = admin.post("/api/v1/sites", json={"name": name}).json()
            folders[name] = enrolled_folder(tmp_path_factory.mktemp(name), invitation)
        admin.post("/api/v1/sites/suspended-away:suspend", json={"reason": "a question is open"}).raise_for_status()
    last = max(
        certificate_from_pem(load_identity(folder).certificate_pem).not_valid_after_utc for folder in folders.values()
    )
    time.sleep(max(0.0, (last - datetime.now(UTC)).total_seconds()) + 0.1)
    yield folders.__getitem__
    assert brief.stop() == 0


async def test_site_whose_certificate_has_ended_recovers_by_its_signing_key(ended) -> None:
    folder, record = ended("away"), Recorded()
    before = key_in_use(folder)
    async with keeping(folder, record=record) as keeper:
        await keeper.renew()
    assert key_in_use(folder) != before
    assert record.events[0][1]["by"] == "signing-key"
    assert secrets_in(folder) == {"signing.pem", "tls.identity.pem"}


async def test_suspended_site_does_not_recover(ended) -> None:
    folder = ended("suspended-away")
    async with keeping(folder) as keeper:
        with pytest.raises(EnrolmentRefusedError) as refused:
            await keeper.renew()
    assert refused.value.facts["refusal_code"] == "site-not-active"
    assert secrets_in(folder) == {"signing.pem", "tls.pem"}


async def test_nothing_is_signed_for_a_listener_that_the_coordinator_s_key_does_not_vouch_for(
    ended, coordinator
) -> None:
    folder = ended("lured")
    told = load_identity(folder)
    for address, error in (
        (coordinator.addresses()["enrolment"], ListenerCertificateError),
        (None, RecoveryAddressMissingError),
    ):
        write_identity_document(folder, replace(told, enrolment_address=address))
        asked = CountingListener()
        async with keeping(folder, listener=asked) as keeper:
            with pytest.raises(error):
                await keeper.renew()
        assert asked.n_renewals == 0


class CountingListener(NetworkEnrolmentListener):
    n_renewals = 0

    def renew(self, address: str, certificate_der: bytes, request: RenewalRequest) -> RenewalAnswer:
        self.n_renewals += 1
        return super().renew(address, certificate_der, request)


async def test_two_copies_of_a_folder_are_found_out(new_folder, admin, tmp_path) -> None:
    folder = await asyncio.to_thread(new_folder, "copied")
    async with keeping(folder) as keeper:
        await keeper.check_in(SiteStatementKind.STARTED)
        await keeper.renew()
    copy = SiteFolder(root=tmp_path / "copy")
    await asyncio.to_thread(os.system, f"cp -a {folder.root} {copy.root}")
    async with keeping(copy) as thief, keeping(folder) as keeper:
        await thief.renew()
        with pytest.raises(CoordinatorRefusedError) as refused:
            await keeper.check_in(SiteStatementKind.PRESENT)
    assert refused.value.refusal_code == "site-cloned"
    shown = (await asyncio.to_thread(admin.get, "/api/v1/sites/copied")).json()
    assert (shown["state"], shown["reason"]) == ("SUSPENDED", "two copies of this site's state folder are in use")
