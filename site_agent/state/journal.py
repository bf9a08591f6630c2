"""The journal of exchanges: what a crash must not lose, and what must be gone when an exchange is over.

    journal/<run id>/<round>.<attempt>.<exchange>.<attempt>/
        key          32 random bytes; the first file to come and the first to go
        record       nonce (12) || AES-256-GCM(key, pack(...)), additional data "wardround/journal/v1" || context:
                     the steps taken with the digest of what each answered, the exact bytes of the latest statement,
                     the role's snapshot with the secrets that are still needed
        masked.bin   the masked input as it leaves: it is what the coordinator will hold, and needs no secrecy.
                     Behind it the leaf hashes of its chunks (32 bytes each), which are sent with them

``record`` is one file that is replaced whole, so a reader finds the state before a step or after it, nothing between.
A statement leaves only after its record is on the disk; ``masked.bin`` is on the disk before the record says MASK.
Invariant: where the record says that a step was taken, its bytes can be sent again; where it does not, none has left.

Safety: deleting ``key`` makes every older copy of ``record`` unreadable, also in freed blocks and backups.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fl_protocol.errors import WardroundError
from fl_protocol.ids import run_id_from_text
from fl_protocol.packing import PackedBytesInvalidError, pack, text_from_bytes, unpack
from fl_protocol.secagg.entropy import Entropy
from fl_protocol.spec.context import ExchangeContext
from site_agent.errors import JournalDamagedError
from site_agent.session.events import Step
from site_agent.state.private_files import BytesLike, erase_file, make_private_folder, sync_folder, write_private_file

_KEY_BYTES = 32
_NONCE_BYTES = 12
_DOMAIN = b"wardround/journal/v1"

KEY_FILE = "key"
RECORD_FILE = "record"
SPOOL_FILE = "masked.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeRecord:
    """Where this site is in one exchange.

    Attributes:
        context: the exchange.
        taken: the steps, in order, each with the digest of the message it answered ("" for M1, which answers none).
        message: the exact bytes of the latest statement (a complaint, when ``is_complaint``).
        snapshot: the role after it. Safety: secret.
        is_complaint: whether the latest statement blames a dealer.
    """

    context: ExchangeContext
    taken: tuple[tuple[Step, str], ...]
    message: bytes
    snapshot: bytes
    is_complaint: bool = False

    def __repr__(self) -> str:
        """Which steps were taken; never the snapshot."""
        return f"ExchangeRecord({self.context}, {[step.value for step, _ in self.taken]})"

    @property
    def last_step(self) -> Step | None:
        """The latest step; None when there was none."""
        return self.taken[-1][0] if self.taken else None

    def encode(self) -> bytes:
        """The plaintext of the record."""
        steps = [field for step, digest in self.taken for field in (step.value.encode(), digest.encode())]
        flag = b"complaint" if self.is_complaint else b""
        return pack(self.context.encode(), pack(*steps), self.message, self.snapshot, flag)

    @classmethod
    def decode(cls, data: bytes) -> ExchangeRecord:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError, ValueError."""
        context, steps, message, snapshot, flag = unpack(data, 5)
        names = [text_from_bytes(field) for field in unpack(steps)]
        return cls(
            context=ExchangeContext.decode(context),
            taken=tuple((Step(name), digest) for name, digest in zip(names[::2], names[1::2], strict=True)),
            message=message,
            snapshot=snapshot,
            is_complaint=flag == b"complaint",
        )


class Journal:
    """The open exchanges of this site. One agent at a time writes it: the daemon holds the state directory's lock."""

    def __init__(self, root: Path, *, entropy: Entropy) -> None:
        """Take the folder, which need not exist yet, and the source of keys and nonces."""
        self._root = root
        self._entropy = entropy

    def write(self, record: ExchangeRecord) -> None:
        """Bring a record to the disk; the exchange's key is made with its first record.

        Raises:
            JournalDamagedError: the exchange has a record but its key is gone: it was closed.
        """
        folder = self._folder(record.context)
        key = self._read_key(folder)
        if key is None:
            if (folder / RECORD_FILE).exists():
                raise JournalDamagedError("the exchange was closed", context=folder.name)
            make_private_folder(folder)
            key = self._entropy.draw(_KEY_BYTES)
            write_private_file(folder / KEY_FILE, [key])
        nonce = self._entropy.draw(_NONCE_BYTES)
        sealed = AESGCM(key).encrypt(nonce, record.encode(), _DOMAIN + record.context.encode())
        write_private_file(folder / RECORD_FILE, [nonce, sealed])

    def read(self, context: ExchangeContext) -> ExchangeRecord | None:
        """The exchange's record; None when no step was taken, or the exchange is closed.

        Raises:
            JournalDamagedError: the record cannot be opened with its key.
        """
        folder = self._folder(context)
        key = self._read_key(folder)
        if key is None or not (folder / RECORD_FILE).exists():
            return None
        sealed = (folder / RECORD_FILE).read_bytes()
        try:
            plain = AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _DOMAIN + context.encode())
            record = ExchangeRecord.decode(plain)
        except (InvalidTag, PackedBytesInvalidError, ValueError) as error:
            raise JournalDamagedError("the record of an exchange cannot be opened", context=folder.name) from error
        if record.context != context:
            raise JournalDamagedError("the record is of another exchange", context=folder.name)
        return record

    def write_spool(self, context: ExchangeContext, parts: Iterable[BytesLike]) -> Path:
        """Bring the masked input to the disk, before its step is recorded."""
        folder = self._folder(context)
        make_private_folder(folder)
        path = folder / SPOOL_FILE
        write_private_file(path, parts)
        return path

    def spool_path(self, context: ExchangeContext) -> Path:
        """Where the masked input lies.

        Raises:
            JournalDamagedError: it is not there.
        """
        path = self._folder(context) / SPOOL_FILE
        if not path.exists():
            raise JournalDamagedError("the masked input of an exchange is missing", context=path.parent.name)
        return path

    def close(self, context: ExchangeContext) -> None:
        """Forget an exchange: its key first, then everything else. Closing again does nothing."""
        folder = self._folder(context)
        erase_file(folder / KEY_FILE)
        if folder.exists():
            shutil.rmtree(folder)
            sync_folder(folder.parent)

    def open_contexts(self) -> tuple[ExchangeContext, ...]:
        """Every exchange that has a folder, sorted by its numbers; what a crash left half deleted is among them."""
        if not self._root.exists():
            return ()
        found = [
            context
            for run in sorted(self._root.iterdir())
            if run.is_dir()
            for folder in run.iterdir()
            if (context := _context_of(run.name, folder.name)) is not None
        ]
        return tuple(sorted(found, key=_order))

    def _folder(self, context: ExchangeContext) -> Path:
        counters = (context.round_index, context.round_attempt, context.exchange_index, context.exchange_attempt)
        return self._root / context.run_id / ".".join(map(str, counters))

    @staticmethod
    def _read_key(folder: Path) -> bytes | None:
        try:
            key = (folder / KEY_FILE).read_bytes()
        except FileNotFoundError:
            return None
        if len(key) != _KEY_BYTES or not any(key):
            # Erased, but not yet removed, when the power went.
            return None
        return key


def _order(context: ExchangeContext) -> tuple[str, int, int, int, int]:
    return (
        context.run_id,
        context.round_index,
        context.round_attempt,
        context.exchange_index,
        context.exchange_attempt,
    )


def _context_of(run_name: str, folder_name: str) -> ExchangeContext | None:
    try:
        round_index, round_attempt, exchange_index, exchange_attempt = map(int, folder_name.split("."))
        return ExchangeContext(
            run_id=run_id_from_text(run_name),
            round_index=round_index,
            round_attempt=round_attempt,
            exchange_index=exchange_index,
            exchange_attempt=exchange_attempt,
        )
    except (ValueError, WardroundError):
        return None
