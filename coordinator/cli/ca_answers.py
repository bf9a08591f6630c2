"""``wardround-coordinator ca``: their steps, sentences and answers. Part of the composition root.

A rotation is one command, given again: ``rotate`` takes the next step that cuts nobody off, or says whom it waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from sqlalchemy.orm import Session

from coordinator.ca.authority import Issuer, create_root
from coordinator.ca.errors import KeyFileInvalidError, RotationStepError, RotationWaitsError
from coordinator.ca.key_files import load_certificate, load_key, read_file, write_new_file
from coordinator.ca.slot_files import ROOT_KEY, Register, Slot, SlotFiles, SlotState
from coordinator.db.tx import Database
from coordinator.installation import ROOT_CERTIFICATE, open_installation
from coordinator.services.rotate_root import (
    RootChange,
    record_root_change,
    sites_that_have_not_heard,
    sites_under_other_roots,
)
from fl_protocol.audit.events import AuditKind
from fl_protocol.clock import Clock
from fl_protocol.ids import Sha256Hex
from fl_protocol.pki.certificates import Validity, issue_issuer, new_serial
from fl_protocol.pki.csr import make_csr, read_csr
from fl_protocol.pki.keys import generate_private_key, pem_from_private_key
from fl_protocol.pki.tls import certificate_fingerprint, pem_from_certificate
from fl_protocol.signing.keys import spki_fingerprint

Answer = tuple[Mapping[str, object], list[str]]
_ACTOR = "coordinator"
_BACKDATE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    """A coordinator's slots and database, for one command."""

    files: SlotFiles
    database: Database
    now: datetime

    def sites(self, find: Callable[[Session], tuple[str, ...]]) -> tuple[str, ...]:
        return self.database.read("sites_of_rotation", find)

    def take(self, kind: AuditKind, register: Register, slot: Slot) -> None:
        """Record a step, then take it."""
        change = RootChange(
            kind=kind,
            root_sha256=slot.root_sha256,
            issuer_sha256=certificate_fingerprint(slot.certificate),
            version=register.version,
        )
        self.database.run_tx(
            "rotate_root", lambda session: record_root_change(session, change, actor=_ACTOR, now=self.now)
        )
        self.files.write(register)


def show_answer(config: Path, *, clock: Clock) -> Answer:
    """The roots, who issues, and the two signing keys."""
    installation = open_installation(config)
    keys, register = installation.load_keys(), installation.slot_files.read()
    root = keys.authority.root
    facts: dict[str, object] = {
        "root_sha256": keys.authority.root_sha256,
        "subject": root.subject.rfc4514_string(),
        "not_after": root.not_valid_after_utc.isoformat(),
        "signing_key_sha256": spki_fingerprint(keys.signer.spki_der),
        "release_key_sha256": spki_fingerprint(keys.release_signer.spki_der),
    }
    slots = [
        {
            "state": slot.state.value,
            "root_sha256": slot.root_sha256,
            "issuer_not_after": slot.certificate.not_valid_after_utc.isoformat(),
            "offline_root": slot.is_under_an_offline_root,
        }
        for slot in register.slots
    ]
    lines = [f"{name:20} {value}" for name, value in facts.items()]
    lines += [
        f"{slot.state.value:20} root {slot.root_sha256}"
        + (", its key elsewhere" if slot.is_under_an_offline_root else "")
        + f"; issues until {slot.certificate.not_valid_after_utc:%Y-%m-%d}"
        for slot in register.slots
    ]
    with _opened(config, clock=clock) as one:
        waits_for = _waits_for(one, register)
    if waits_for:
        lines.append(f"{'waits for':20} {', '.join(waits_for)}")
    return {**facts, "slots": slots, "roots_version": register.version, "waits_for": list(waits_for)}, lines


def rotate_answer(config: Path, *, is_hurried: bool, clock: Clock) -> Answer:
    """Take the next step.

    Raises:
        RotationWaitsError: it would cut sites off that have a certificate which lives.
        DatabaseUnavailableError: nothing can be recorded, and nothing was done.
    """
    with _opened(config, clock=clock) as one:
        register = one.files.read()
        if register.slot(SlotState.NEXT) is None and register.slot(SlotState.RETIRING) is None:
            if register.issuing.is_under_an_offline_root:
                raise RotationStepError(
                    "the root is offline: `ca csr`, there `ca sign`, then `ca install` and `ca rotate`"
                )
            consortium = register.issuing.root.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
            root, key = create_root(consortium=str(consortium), now=one.now)
            return _prepare(one, Issuer(certificate=root, key=key, root=root))
        waits_for = _waits_for(one, register)
        if waits_for and not is_hurried:
            raise RotationWaitsError(
                f"the next step waits for {', '.join(waits_for)}; give the command again later", sites=len(waits_for)
            )
        if register.slot(SlotState.NEXT) is not None:
            switched = one.files.switched(register)
            one.take(AuditKind.ROOT_ISSUING, switched, switched.issuing)
            return _answer(
                "switched",
                switched.issuing.root_sha256,
                "Certificates are issued under the new root; the old one is believed until no certificate of it lives.",
                "People sign in again with the new root.pem: `wardround login`. In a few days, `ca rotate` once more.",
            )
        leaving = register.slot(SlotState.RETIRING)
        assert leaving is not None, "one of the two is there"
        retired = one.files.retired(register, now=one.now)
        one.take(AuditKind.ROOT_RETIRED, retired, leaving)
        return _answer(
            "retired",
            retired.issuing.root_sha256,
            "The old root is not believed any more, and its key is erased. Make a backup now.",
        )


def csr_answer(config: Path, file: Path) -> Answer:
    """Make a key, and the request that an offline root is to sign.

    Raises:
        KeyFileExistsError: the file is there; or a key is, whose request was not answered yet.
    """
    files = open_installation(config).slot_files
    if not files.pending_issuer_key().exists():
        write_new_file(files.pending_issuer_key(), pem_from_private_key(generate_private_key()), mode=0o600)
    csr_der = make_csr(files.load_pending_issuer_key())
    pem = x509.load_der_x509_csr(csr_der).public_bytes(serialization.Encoding.PEM)
    write_new_file(file, pem, mode=0o644)
    return {"csr": str(file)}, [
        f"Wrote {file}. Take it to the machine with the offline root, and there:",
        "  wardround-coordinator ca sign ROOT-FOLDER REQUEST issuer.pem",
    ]


def install_answer(config: Path, file: Path, *, clock: Clock) -> Answer:
    """Make what an offline root signed the next issuer.

    Raises:
        KeyFileInvalidError: the file is not an issuer's certificate for our key, with its root behind it.
        RotationStepError: a root is being replaced already.
    """
    try:
        certificate, root = x509.load_pem_x509_certificates(read_file(file))
    except ValueError as error:
        message = "the file holds two certificates, the issuer's and behind it its root's"
        raise KeyFileInvalidError(message, path=str(file)) from error
    with _opened(config, clock=clock) as one:
        issuer = Issuer(certificate=certificate, key=one.files.load_pending_issuer_key(), root=root)
        if not _may_sign(certificate, path_length=0) or not _may_sign(root, path_length=1):
            raise KeyFileInvalidError("the root may not sign issuers, or the issuer may not sign", path=str(file))
        answer = _prepare(one, issuer)
        one.files.drop_pending_issuer_key()
        return answer


def offline_root_answer(folder: Path, *, consortium: str, clock: Clock) -> Answer:
    """Make a root that is to be kept offline; run where no network is.

    Raises:
        KeyFileExistsError: there is one already.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    root, key = create_root(consortium=consortium, now=clock.now(), signs_issuers=True)
    write_new_file(folder / ROOT_KEY, pem_from_private_key(key), mode=0o600)
    write_new_file(folder / ROOT_CERTIFICATE, pem_from_certificate(root), mode=0o644)
    sha256 = certificate_fingerprint(root)
    return {"root_certificate": str(folder / ROOT_CERTIFICATE), "root_sha256": sha256}, [
        f"Wrote {folder / ROOT_KEY} (keep it offline) and {folder / ROOT_CERTIFICATE}",
        f"  SHA-256 {sha256}",
    ]


def sign_answer(folder: Path, csr: Path, file: Path, *, days: int, clock: Clock) -> Answer:
    """Sign an issuer's request with an offline root.

    Raises:
        CaError, CertificateRequestInvalidError, CertificateInvalidError: a file is not what it should be.
    """
    root, key = load_certificate(folder / ROOT_CERTIFICATE), load_key(folder / ROOT_KEY)
    try:
        request = x509.load_pem_x509_csr(read_file(csr))
    except ValueError as error:
        raise KeyFileInvalidError("the file holds no certificate request in PEM", path=str(csr)) from error
    now = clock.now()
    until = min(now + timedelta(days=days), root.not_valid_after_utc)
    name = str(root.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
    certificate = issue_issuer(
        key,
        root,
        public_key=read_csr(request.public_bytes(serialization.Encoding.DER)),
        common_name=f"{name[:50]} issuer",
        validity=Validity(not_before=max(now - _BACKDATE, root.not_valid_before_utc), not_after=until),
        serial=new_serial(),
    )
    write_new_file(file, pem_from_certificate(certificate) + pem_from_certificate(root), mode=0o644)
    return {"certificate": str(file), "not_after": until.isoformat(), "root_sha256": certificate_fingerprint(root)}, [
        f"Wrote {file}, valid until {until:%Y-%m-%d}. At the coordinator: wardround-coordinator ca install {file.name}"
    ]


def _prepare(one: _Open, issuer: Issuer) -> Answer:
    register = one.files.prepare(issuer, now=one.now)
    coming = register.slot(SlotState.NEXT)
    assert coming is not None, "it was just put there"
    one.take(AuditKind.ROOT_PREPARED, register, coming)
    return _answer(
        "prepared",
        coming.root_sha256,
        "Sites are told of the next root with their next word, within an hour. Then `ca rotate` again.",
        "root.pem holds both roots now; tell people the new fingerprint.",
    )


def _waits_for(one: _Open, register: Register) -> tuple[str, ...]:
    if register.slot(SlotState.NEXT) is not None:
        return one.sites(lambda session: sites_that_have_not_heard(session, version=register.version, now=one.now))
    if register.slot(SlotState.RETIRING) is not None:
        root_sha256 = register.issuing.root_sha256
        return one.sites(lambda session: sites_under_other_roots(session, root_sha256=root_sha256, now=one.now))
    return ()


def _answer(state: str, root_sha256: Sha256Hex, *sentences: str) -> Answer:
    return {"state": state, "root_sha256": root_sha256}, [f"Root {root_sha256}: {state}.", *sentences]


def _may_sign(certificate: x509.Certificate, *, path_length: int) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    return constraints.ca and (constraints.path_length is None or constraints.path_length >= path_length)


@contextmanager
def _opened(config: Path, *, clock: Clock) -> Iterator[_Open]:
    installation = open_installation(config)
    database = installation.open_database()
    try:
        yield _Open(files=installation.slot_files, database=database, now=clock.now())
    finally:
        database.dispose()
