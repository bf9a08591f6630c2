# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
"""The root is replaced under a coordinator that serves: by one of its own, and by one whose key it never sees."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from cryptography import x509

from fl_protocol.audit.events import AuditFact, AuditKind
from fl_protocol.pki.tls import certificate_fingerprint, certificate_from_pem, verify_site_chain
from fl_protocol.signing.site_statement import SiteStatementKind
from site_agent.enrolment.code import code_from_text
from site_agent.enrolment.enrol import EnrolmentOrder, enrol_site
from site_agent.enrolment.errors import RootFingerprintError
from site_agent.enrolment.identity_file import load_identity
from site_agent.enrolment.keystore import KeyStore
from site_agent.enrolment.listener import NetworkEnrolmentListener
from site_agent.enrolment.renewal import IdentityKeeper, RenewalSeams
from site_agent.errors import CoordinatorUnavailableError
from site_agent.folder import SiteFolder
from site_agent.link.client import CoordinatorClient
from site_agent.link.http1_channel import Http1Channel
from site_agent.link.identity_calls import IdentityCalls
from site_agent.link.link_channel import LinkChannel
from site_agent.settings import load_settings
from site_agent.supervision.seams import SystemEntropy
from site_agent.way_out import find_way_out


@dataclass
class SystemNow:
    def now(self) -> datetime:
        return datetime.now(UTC)


@dataclass
class Recorded:
    kinds: list[AuditKind] = field(default_factory=list)

    def __call__(self, kind: AuditKind, facts: dict[str, AuditFact]) -> None:
        self.kinds.append(kind)


@pytest.fixture
def served(new_coordinator) -> Iterator[Any]:
    new_coordinator.init()
    new_coordinator.start()
    return new_coordinator


def ca(coordinator, *words: str) -> dict[str, Any]:
    done = coordinator.run("--json", "ca", *words, "--config", str(coordinator.config))
    answer: dict[str, Any] = json.loads(done.stdout)
    return {"exit": done.exit_code, **answer}


def wait_until_taken_up(coordinator) -> None:
    """The process looks every second, and says so in its log."""
    n_before = getattr(wait_until_taken_up, "seen", {}).get(coordinator.directory, 0)
    deadline = time.monotonic() + 20
    while True:
        n_changes = (coordinator.directory / "serve.log").read_text().count("authority_changed")
        if n_changes > n_before:
            wait_until_taken_up.seen = {coordinator.directory: n_changes}  # type: ignore[attr-defined]
            return
        assert time.monotonic() < deadline, "the coordinator took no change up"
        time.sleep(0.1)


def enrol(coordinator, folder: SiteFolder, *, fingerprint: str | None = None) -> None:
    with coordinator.client(coordinator.admin_token()) as admin:
        invitation = admin.post("/api/v1/sites", json={"name": folder.root.name}).json()
    folder.root.mkdir(mode=0o700)
    order = EnrolmentOrder(
        coordinator_address=invitation["enrolment_address"],
        code=code_from_text(invitation["code"]),
        root_fingerprint=fingerprint or invitation["root_fingerprint"],
        agent_version="test",
    )
    enrol_site(folder, order, listener=NetworkEnrolmentListener(), now=datetime.now(UTC), record=lambda *_: None)


@asynccontextmanager
async def keeping(folder: SiteFolder, record: Recorded | None = None) -> AsyncIterator[IdentityKeeper]:
    settings, identity = load_settings(folder.root), load_identity(folder)
    link = LinkChannel(find_way_out(settings, identity, environment={}).link_options(), clock_s=time.monotonic)
    seams = RenewalSeams(
        folder=folder,
        signer=KeyStore(folder).load_signer(),
        clock=SystemNow(),
        entropy=SystemEntropy(),
        calls=IdentityCalls(link),
        listener=NetworkEnrolmentListener(),
        record=record or Recorded(),
        switch=lambda found: link.renew(find_way_out(settings, found, environment={}).link_options()),
        agent_version="test",
    )
    try:
        yield IdentityKeeper(seams, identity)
    finally:
        await link.close()


async def is_admitted(folder: SiteFolder) -> bool:
    """By either transport, over new connections."""
    ways = find_way_out(load_settings(folder.root), load_identity(folder), environment={})
    link = LinkChannel(ways.link_options(), clock_s=time.monotonic)
    assert ways.fallback is not None
    http1 = Http1Channel(ways.fallback.address, ways.fallback.identity)
    try:
        await CoordinatorClient(link, agent_version="test").list_pending()
        await CoordinatorClient(http1, agent_version="test").list_pending()
    except CoordinatorUnavailableError:
        return False
    finally:
        await link.close()
        await http1.close()
    return True


def roots_of(folder: SiteFolder) -> set[str]:
    return {certificate_fingerprint(root) for root in x509.load_pem_x509_certificates(load_identity(folder).root_pem)}


async def test_root_is_replaced_in_three_steps_without_an_outage(served, tmp_path) -> None:
    folder, record = SiteFolder(root=tmp_path / "alpha"), Recorded()
    await asyncio.to_thread(enrol, served, folder)
    old = ca(served, "show")["root_sha256"]
    async with keeping(folder, record) as keeper:
        await keeper.check_in(SiteStatementKind.STARTED)
        prepared = ca(served, "rotate")
        new = prepared["root_sha256"]
        assert (prepared["exit"], prepared["state"]) == (0, "prepared")
        await asyncio.to_thread(wait_until_taken_up, served)
        # Nobody was told yet: the step that would cut the site off is refused.
        waits = ca(served, "rotate")
        assert (waits["exit"], waits["error"]["code"]) == (5, "rotation-waits")
        assert ca(served, "show")["waits_for"] == ["alpha"]
        await keeper.check_in(SiteStatementKind.PRESENT)
        assert roots_of(folder) == {old, new}
        assert ca(served, "rotate")["state"] == "switched"
        await asyncio.to_thread(wait_until_taken_up, served)
        # The old certificate is good still, and the gateway's is of the new root already.
        assert await is_admitted(folder)
        waits = ca(served, "rotate")
        assert (waits["exit"], ca(served, "show")["waits_for"]) == (5, ["alpha"])
        renewed = await keeper.renew()
        _, root = verify_site_chain(renewed.certificate_pem, x509.load_pem_x509_certificates(renewed.root_pem))
        assert certificate_fingerprint(root) == new
        assert ca(served, "rotate")["state"] == "retired"
        await asyncio.to_thread(wait_until_taken_up, served)
        await keeper.check_in(SiteStatementKind.PRESENT)
        assert roots_of(folder) == {new}
        assert await is_admitted(folder)
    assert record.kinds == [AuditKind.ROOTS_CHANGED, AuditKind.CERTIFICATE_RENEWED, AuditKind.ROOTS_CHANGED]
    assert not (served.directory / "keys" / "root.key.pem").exists()
    shown = ca(served, "show")
    assert [slot["state"] for slot in shown["slots"]] == ["issuing"]
    # People see the new root, and the log is the same log, by its first name.
    with served.client(served.admin_token()) as admin:
        kinds = [event["kind"] for event in admin.get("/api/v1/audit/events?limit=200").json()["items"]]
    assert [kind for kind in kinds if kind.startswith("root.")] == ["root.prepared", "root.issuing", "root.retired"]
    old_root = x509.load_pem_x509_certificate((served.directory / "root.pem").read_bytes())
    assert certificate_fingerprint(old_root) == new
    assert served.stop() == 0
    # All of it is on the disk.
    (served.directory / "serve.json").unlink(missing_ok=True)
    await asyncio.to_thread(served.start)
    assert served.run("doctor", "--config", str(served.config)).exit_code == 0


async def test_site_that_was_away_during_a_rotation_recovers_and_believes_the_new_root(served, tmp_path) -> None:
    folder = SiteFolder(root=tmp_path / "beta")
    await asyncio.to_thread(enrol, served, folder)
    for state in ("prepared", "switched", "retired"):
        assert ca(served, "rotate", "--without-waiting")["state"] == state
        await asyncio.to_thread(wait_until_taken_up, served)
    assert not await is_admitted(folder)
    async with keeping(folder) as keeper:
        keeper._seams = _hurried(keeper._seams)
        await keeper.renew()
    assert roots_of(folder) == {ca(served, "show")["root_sha256"]}
    assert await is_admitted(folder)


def _hurried(seams: RenewalSeams) -> RenewalSeams:
    """The same, a day before the certificate's three are over."""
    from dataclasses import replace
    from datetime import timedelta

    class Later:
        def now(self) -> datetime:
            return datetime.now(UTC) + timedelta(hours=71)

    return replace(seams, clock=Later())


async def test_offline_root_issues_through_the_coordinator_and_enrolment_compares_its_fingerprint(
    served, tmp_path
) -> None:
    offline, csr, signed = tmp_path / "offline", tmp_path / "issuer.csr", tmp_path / "issuer.pem"
    made = served.run("--json", "ca", "offline-root", str(offline), "--consortium", "Rare disease network")
    root_sha256 = json.loads(made.stdout)["root_sha256"]
    assert ca(served, "csr", str(csr))["exit"] == 0
    done = served.run("--json", "ca", "sign", str(offline), str(csr), str(signed))
    assert done.exit_code == 0, done.output
    assert ca(served, "install", str(signed))["state"] == "prepared"
    assert ca(served, "rotate")["state"] == "switched"
    assert ca(served, "rotate")["state"] == "retired"
    await asyncio.to_thread(wait_until_taken_up, served)
    # No key of a root is at the coordinator any more; one that issues is.
    keys = {path.name for path in (served.directory / "keys").glob("*.key.pem")}
    assert "root.key.pem" not in keys
    assert len([name for name in keys if name.startswith("ca-")]) == 1
    assert ca(served, "show")["root_sha256"] == root_sha256
    folder = SiteFolder(root=tmp_path / "gamma")
    await asyncio.to_thread(enrol, served, folder, fingerprint=root_sha256)
    identity = load_identity(folder)
    assert identity.root_sha256 == root_sha256
    leaf = certificate_from_pem(identity.certificate_pem)
    assert leaf.issuer.rfc4514_string() == "CN=Rare disease network issuer"
    assert await is_admitted(folder)
    async with keeping(folder) as keeper:
        await keeper.renew()
    assert await is_admitted(folder)
    other = SiteFolder(root=tmp_path / "delta")
    with pytest.raises(RootFingerprintError):
        await asyncio.to_thread(enrol, served, other, fingerprint=certificate_fingerprint(leaf))
    # There is no key here with which another root could be made the root of all.
    refused = ca(served, "rotate")
    assert (refused["exit"], refused["error"]["code"]) == (1, "rotation-step")


async def test_what_no_offline_root_signed_is_not_installed(served, tmp_path) -> None:
    assert ca(served, "csr", str(tmp_path / "issuer.csr"))["exit"] == 0
    for name, pem in {
        "no-chain": (served.directory / "root.pem").read_bytes(),
        "own-root-twice": (served.directory / "root.pem").read_bytes() * 2,
        "nothing": b"",
    }.items():
        (tmp_path / name).write_bytes(pem)
        refused = ca(served, "install", str(tmp_path / name))
        assert (refused["exit"], refused["error"]["code"]) == (1, "key-file-invalid"), name
    assert [slot["state"] for slot in ca(served, "show")["slots"]] == ["issuing"]


def test_rest_shows_a_certificate_of_the_new_root_once_it_issues(served) -> None:
    context = ssl.create_default_context(cafile=str(served.directory / "root.pem"))
    for _ in range(3):
        assert ca(served, "rotate")["exit"] == 0
    wait_until_taken_up(served)
    url = f"https://{served.addresses()['rest']}"
    with httpx.Client(base_url=url, verify=context) as of_before, pytest.raises(httpx.ConnectError):
        of_before.get("/healthz")
    with served.client(None) as now:
        assert now.get("/healthz").status_code == 200


def test_backup_of_a_rotated_coordinator_is_restored_with_its_roots_and_the_name_of_its_log(served, tmp_path) -> None:
    for _ in range(3):
        assert ca(served, "rotate")["exit"] == 0
    passphrase, file, restored = tmp_path / "pass", tmp_path / "backup.tar", tmp_path / "restored"
    passphrase.touch(mode=0o600)
    passphrase.write_text("a passphrase that is long enough")
    words = ("--passphrase-file", str(passphrase))
    made = served.run("--json", "backup", str(file), *words, "--config", str(served.config))
    assert made.exit_code == 0, made.output
    done = served.run("--json", "restore", str(file), str(restored), *words)
    assert done.exit_code == 0, done.output
    shown = served.run("--json", "ca", "show", "--config", str(restored / "coordinator.yaml"))
    before = ca(served, "show")
    assert json.loads(shown.stdout) == {key: value for key, value in before.items() if key != "exit"}
