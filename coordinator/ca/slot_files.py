"""The authority's slots as files: which certificate issues, which is next, which is believed still. One file says so.

    roots.json                  version, founding root, and a list of slots; replaced whole, by one rename
    root.key.pem                the key of the founding root, whose certificate is root.pem beside the configuration
    ca-<name>.key.pem           the key of a later slot, 0600; ca-<name>.pem and ca-<name>.root.pem are its certificates
    issuer.next.key.pem         a key for which an offline root is being asked to sign

A folder without ``roots.json`` has one slot, the founding root. Files of a slot are written before it is named, and a
key is erased after its slot was left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator.ca.authority import CaSlots, Issuer
from coordinator.ca.errors import KeyFileInvalidError, RotationStepError
from coordinator.ca.key_files import load_certificate, load_key, read_file, replace_file, write_new_file
from fl_protocol.ids import Sha256Hex
from fl_protocol.pki.keys import pem_from_private_key
from fl_protocol.pki.tls import certificate_fingerprint, pem_from_certificate

ROOT_KEY = "root.key.pem"
REGISTER = "roots.json"
NEXT_ISSUER_KEY = "issuer.next.key.pem"


class SlotState(StrEnum):
    """What a slot is for."""

    NEXT = "next"
    ISSUING = "issuing"
    RETIRING = "retiring"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One authority: what signs, and the root above it.

    Attributes:
        name: the first 16 digits of the SHA-256 of what signs.
        key_file: in the folder of keys.
    """

    name: str
    state: SlotState
    certificate: x509.Certificate
    root: x509.Certificate
    key_file: str

    @property
    def root_sha256(self) -> Sha256Hex:
        """By which root it is known."""
        return certificate_fingerprint(self.root)

    @property
    def is_under_an_offline_root(self) -> bool:
        """Whether the root's key lies elsewhere."""
        return self.certificate != self.root


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """All slots. Invariant: exactly one issues; at most one is next, at most one retires, and not both at once."""

    slots: tuple[Slot, ...]
    version: int
    founding_sha256: Sha256Hex

    def __post_init__(self) -> None:
        states = sorted(slot.state for slot in self.slots)
        if states not in (["issuing"], ["issuing", "next"], ["issuing", "retiring"]):
            raise KeyFileInvalidError("the authority's slots contradict each other", states=",".join(states))

    def slot(self, state: SlotState) -> Slot | None:
        """The slot of this state."""
        return next((slot for slot in self.slots if slot.state is state), None)

    @property
    def issuing(self) -> Slot:
        """The one that issues."""
        return next(slot for slot in self.slots if slot.state is SlotState.ISSUING)

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        """Every root that is believed, each once, the issuing one first."""
        ordered = (self.issuing, *(slot for slot in self.slots if slot.state is not SlotState.ISSUING))
        return tuple(dict.fromkeys(slot.root for slot in ordered))


class SlotFiles:
    """Reads and changes the slots of one coordinator."""

    def __init__(self, keys_directory: Path, *, published_root: Path) -> None:
        """Take the folder of keys, and the file that shows the roots to people."""
        self._folder = keys_directory
        self._published = published_root

    @property
    def register_file(self) -> Path:
        """What a running coordinator watches."""
        return self._folder / REGISTER

    def read(self) -> Register:
        """The slots.

        Raises:
            KeyFileMissingError, KeyFileInvalidError: a file is missing, or holds something else.
        """
        if not self.register_file.exists():
            root = load_certificate(self._published)
            sha256 = certificate_fingerprint(root)
            founding = Slot(name=sha256[:16], state=SlotState.ISSUING, certificate=root, root=root, key_file=ROOT_KEY)
            return Register(slots=(founding,), version=0, founding_sha256=sha256)
        try:
            document = json.loads(read_file(self.register_file))
            return Register(
                slots=tuple(self._slot(entry) for entry in document["slots"]),
                version=int(document["version"]),
                founding_sha256=Sha256Hex(str(document["founding_sha256"])),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise KeyFileInvalidError("the file names no slots", path=str(self.register_file)) from error

    def load(self) -> CaSlots:
        """What a process works with.

        Raises:
            CaError: the issuing key is missing, open to all, or another's; or see ``read``.
        """
        register = self.read()
        issuing = register.issuing
        issuer = Issuer(
            certificate=issuing.certificate, key=load_key(self._folder / issuing.key_file), root=issuing.root
        )
        return CaSlots(
            issuing=issuer,
            trusted=register.roots,
            version=register.version,
            founding_sha256=register.founding_sha256,
        )

    def prepare(self, issuer: Issuer, *, now: datetime) -> Register:
        """The slots with another one as the next; its files are there, and nothing names it yet (``write``).

        Raises:
            RotationStepError: a rotation is under way, or it is what issues already.
        """
        register = self.read()
        if len(register.slots) > 1:
            raise RotationStepError("a root is being replaced already; `ca rotate` goes on with it")
        name = certificate_fingerprint(issuer.certificate)[:16]
        if name == register.issuing.name:
            raise RotationStepError("this is what issues already")
        slot = Slot(
            name=name,
            state=SlotState.NEXT,
            certificate=issuer.certificate,
            root=issuer.root,
            key_file=f"ca-{name}.key.pem",
        )
        for path, content, mode in (
            (self._folder / slot.key_file, pem_from_private_key(issuer.key), 0o600),
            (self._folder / f"ca-{name}.pem", pem_from_certificate(issuer.certificate), 0o644),
            (self._folder / f"ca-{name}.root.pem", pem_from_certificate(issuer.root), 0o644),
        ):
            path.unlink(missing_ok=True)
            write_new_file(path, content, mode=mode)
        return replace(register, slots=(*register.slots, slot), version=_later(register.version, now))

    @staticmethod
    def switched(register: Register) -> Register:
        """The slots once the next one issues, and the one before retires. Raises RotationStepError."""
        coming = register.slot(SlotState.NEXT)
        if coming is None:
            raise RotationStepError("there is no next root; `ca rotate` or `ca install` makes one")
        leaving = replace(register.issuing, state=SlotState.RETIRING)
        return replace(register, slots=(replace(coming, state=SlotState.ISSUING), leaving))

    @staticmethod
    def retired(register: Register, *, now: datetime) -> Register:
        """The slots without the one that retires. Raises RotationStepError."""
        if register.slot(SlotState.RETIRING) is None:
            raise RotationStepError("no root is being retired")
        return replace(register, slots=(register.issuing,), version=_later(register.version, now))

    def write(self, register: Register) -> None:
        """Make these the slots, show their roots to people, and erase the keys that none of them needs."""
        for slot in register.slots:
            for path, certificate in self._certificates(slot):
                if not path.exists():
                    write_new_file(path, pem_from_certificate(certificate), mode=0o644)
        document = {
            "version": register.version,
            "founding_sha256": register.founding_sha256,
            "slots": [
                {"name": slot.name, "state": slot.state.value, "key_file": slot.key_file} for slot in register.slots
            ],
        }
        replace_file(self.register_file, json.dumps(document, indent=2).encode() + b"\n", mode=0o644)
        roots = b"".join(pem_from_certificate(root) for root in register.roots)
        replace_file(self._published, roots, mode=0o644)
        needed = {slot.key_file for slot in register.slots}
        for path in (self._folder / ROOT_KEY, *self._folder.glob("ca-*.key.pem")):
            if path.name not in needed and path.exists():
                _erase(path)

    def pending_issuer_key(self) -> Path:
        """Where the key lies for which an offline root is being asked."""
        return self._folder / NEXT_ISSUER_KEY

    def load_pending_issuer_key(self) -> ec.EllipticCurvePrivateKey:
        """That key. Raises CaError."""
        return load_key(self.pending_issuer_key())

    def drop_pending_issuer_key(self) -> None:
        """It has a slot now."""
        _erase(self.pending_issuer_key())

    def _slot(self, entry: Mapping[str, object]) -> Slot:
        name = str(entry["name"])
        certificate, root = self._folder / f"ca-{name}.pem", self._folder / f"ca-{name}.root.pem"
        return Slot(
            name=name,
            state=SlotState(str(entry["state"])),
            certificate=load_certificate(certificate),
            root=load_certificate(root),
            key_file=str(entry["key_file"]),
        )

    def _certificates(self, slot: Slot) -> tuple[tuple[Path, x509.Certificate], ...]:
        return (
            (self._folder / f"ca-{slot.name}.pem", slot.certificate),
            (self._folder / f"ca-{slot.name}.root.pem", slot.root),
        )


def _later(version: int, now: datetime) -> int:
    """A version that rises, also over a restore from a backup: milliseconds since 1970."""
    return max(version + 1, int(now.timestamp() * 1000))


def _erase(path: Path) -> None:
    """Overwrite a key, then remove it. On a copy-on-write or flash disk its own encryption has to do the rest."""
    with path.open("r+b") as stream:
        stream.write(bytes(path.stat().st_size))
        stream.flush()
        os.fsync(stream.fileno())
    path.unlink()
