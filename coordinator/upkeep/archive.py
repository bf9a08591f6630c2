"""The file of a backup: a plain tar whose last members are a manifest of all digests and the signature over it.

    tables/NAME.jsonl   one a table               blobs/DIGEST     every blob that a row names
    files/NAME          configuration, root       keys.sealed      private keys under a passphrase
    manifest.json       canonical JSON            manifest.sig     the coordinator's signature, DER

It is written beside its place and appears there whole, by one link that never overwrites.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import secrets
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

import rfc8785

from coordinator.upkeep.errors import BackupDiskFullError, BackupExistsError, BackupInvalidError
from fl_protocol.errors import ProtocolError
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody, sign_body, verify_body

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
MANIFEST_KIND = "WR/sig/backup"
FORMAT = 1
_COPY_BYTES = 1 << 20
_MAX_MANIFEST_BYTES = 256 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What the manifest says of one member."""

    sha256: str
    n_bytes: int


class ArchiveWriter:
    """Adds members and remembers their digests."""

    def __init__(self, tar: tarfile.TarFile, *, spool_folder: Path) -> None:
        self._tar = tar
        self._spool_folder = spool_folder
        self.members: dict[str, Member] = {}

    def add(self, name: str, chunks: Iterable[bytes]) -> Member:
        """Add a member whose length is not known before."""
        with tempfile.TemporaryFile(dir=self._spool_folder) as spool:
            for chunk in chunks:
                spool.write(chunk)
            n_bytes = spool.tell()
            spool.seek(0)
            return self._add(name, spool, n_bytes)

    def add_sized(self, name: str, chunks: Iterable[bytes], *, n_bytes: int) -> Member:
        """Add a member whose length is known."""
        return self._add(name, cast("IO[bytes]", _ChunkReader(chunks)), n_bytes)

    def finish(self, document: Mapping[str, object], signer: Signer) -> str:
        """Add the manifest and its signature; returns the manifest's digest."""
        members = {name: {"sha256": one.sha256, "n_bytes": one.n_bytes} for name, one in self.members.items()}
        body = rfc8785.dumps({**document, "format": FORMAT, "members": members})  # type: ignore[dict-item] # JSON
        signed = sign_body(signer, MANIFEST_KIND, body)
        for name, content in ((MANIFEST, body), (SIGNATURE, signed.signature)):
            self._tar.addfile(_info(name, len(content)), io.BytesIO(content))
        return hashlib.sha256(body).hexdigest()

    def _add(self, name: str, source: IO[bytes], n_bytes: int) -> Member:
        hashing = _HashingReader(source)
        self._tar.addfile(_info(name, n_bytes), cast("IO[bytes]", hashing))
        member = Member(sha256=hashing.digest.hexdigest(), n_bytes=n_bytes)
        self.members[name] = member
        return member


class _HashingReader:
    """Passes bytes on and takes their digest."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.digest.update(data)
        return data


class _ChunkReader:
    """Chunks as a file."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._held = b""

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._held) < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            self._held += chunk
        end = len(self._held) if size < 0 else size
        data, self._held = self._held[:end], self._held[end:]
        return data


@contextmanager
def new_archive(path: Path) -> Iterator[ArchiveWriter]:
    """Write an archive; it is at ``path``, whole and durable, when the block ends, or nothing of it is.

    Raises:
        BackupExistsError: there is something at ``path``.
        BackupDiskFullError: no room.
    """
    path = path.absolute()
    if path.exists():
        raise BackupExistsError("the file is there already; name another", path=str(path))
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(6)}.unfinished")
    try:
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                yield ArchiveWriter(tar, spool_folder=path.parent)
            file.flush()
            os.fsync(file.fileno())
        os.link(unfinished, path)
        _sync_folder(path.parent)
    except FileExistsError as error:
        raise BackupExistsError("the file is there already; name another", path=str(path)) from error
    except OSError as error:
        if error.errno in _FULL:
            message = "there is no room for the backup; nothing of it was kept"
            raise BackupDiskFullError(message, folder=str(path.parent)) from error
        raise
    finally:
        unfinished.unlink(missing_ok=True)


class ArchiveReader:
    """An archive that was verified whole when it was opened."""

    def __init__(self, file: BinaryIO, tar: tarfile.TarFile, document: Mapping[str, object]) -> None:
        self._file = file
        self._tar = tar
        self.document = document

    @property
    def names(self) -> tuple[str, ...]:
        """The members, in the order of the file."""
        return tuple(info.name for info in self._tar.getmembers() if info.name not in (MANIFEST, SIGNATURE))

    def open(self, name: str) -> IO[bytes]:
        """A member's bytes.

        Raises:
            BackupInvalidError: there is no such member.
        """
        try:
            found = self._tar.extractfile(name)
        except KeyError:
            found = None
        if found is None:
            raise BackupInvalidError("the backup lacks a part", member=name)
        return found

    def read(self, name: str) -> bytes:
        """All of a member."""
        with self.open(name) as file:
            return file.read()

    def iter_chunks(self, name: str) -> Iterator[bytes]:
        """A member in pieces."""
        with self.open(name) as file:
            while chunk := file.read(_COPY_BYTES):
                yield chunk


@contextmanager
def open_archive(path: Path) -> Iterator[ArchiveReader]:
    """Open an archive, once its signature, its list of members and every digest are found to be right.

    Raises:
        BackupInvalidError: something is missing, altered, or too much.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            yield ArchiveReader(file, tar, _verified(tar))
    except (tarfile.TarError, EOFError) as error:
        raise BackupInvalidError("the file is no backup, or not whole", path=str(path)) from error
    except FileNotFoundError as error:
        raise BackupInvalidError("there is no such file", path=str(path)) from error


def _verified(tar: tarfile.TarFile) -> Mapping[str, object]:
    infos = {info.name: info for info in tar.getmembers()}
    if len(infos) != len(tar.getmembers()) or not all(info.isfile() for info in infos.values()):
        raise BackupInvalidError("the backup holds something that is no part of one")
    if MANIFEST not in infos or SIGNATURE not in infos:
        raise BackupInvalidError("the file is no backup, or not whole: it has no manifest")
    if infos[MANIFEST].size > _MAX_MANIFEST_BYTES:
        raise BackupInvalidError("the manifest is too long")
    body, signature = _content(tar, infos[MANIFEST]), _content(tar, infos[SIGNATURE])
    document = _document(body)
    try:
        verify_body(
            bytes.fromhex(str(document.get("signing_spki"))), MANIFEST_KIND, SignedBody(body=body, signature=signature)
        )
    except (ProtocolError, ValueError) as error:
        raise BackupInvalidError("the manifest is not signed by the coordinator that it names") from error
    members = document.get("members")
    assert isinstance(members, Mapping), "the document was checked"
    if set(members) != set(infos) - {MANIFEST, SIGNATURE}:
        raise BackupInvalidError("the backup has other parts than its manifest says")
    for name, said in members.items():
        found = _digest(tar, infos[name])
        if not isinstance(said, Mapping) or (said.get("sha256"), said.get("n_bytes")) != (found, infos[name].size):
            raise BackupInvalidError("a part of the backup was altered", member=name)
    return document


def _document(body: bytes) -> Mapping[str, object]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BackupInvalidError("the manifest is no JSON") from error
    if not isinstance(document, dict) or not isinstance(document.get("members"), dict):
        raise BackupInvalidError("the manifest lists no parts")
    if document.get("format") != FORMAT:
        raise BackupInvalidError(
            "the backup is of a format that this version does not know", format=str(document.get("format"))[:20]
        )
    return document


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    return b"" if file is None else file.read()


def _digest(tar: tarfile.TarFile, info: tarfile.TarInfo) -> str:
    digest, file = hashlib.sha256(), tar.extractfile(info)
    if file is not None:
        with file:
            while chunk := file.read(_COPY_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _info(name: str, n_bytes: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = n_bytes, 0o600
    return info


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
