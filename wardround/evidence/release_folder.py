"""Is a release folder what the coordinator signed? Needs the folder only; the key's fingerprint is to be compared.

1. manifest.sig names the kind WR/sig/release, and its key has the fingerprint that it says (and the one expected)
2. the signature holds over the exact bytes of manifest.json
3. every file of the manifest is there with its size and SHA-256
4. no file is there that the manifest does not name
"""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fl_protocol.errors import ProtocolError
from fl_protocol.signing.keys import spki_fingerprint
from fl_protocol.signing.signed import SignedBody, verify_body
from wardround.documents import Document, as_document, document_from_text, text_of
from wardround.errors import CommandError, EvidenceFaultError, NotFoundError, UsageInvalidError

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
SIGNATURE_KIND = "WR/sig/release"
_CHUNK_BYTES = 1 << 20
_ADVICE = "Do not use this folder. Download the release again and compare with whoever runs the coordinator."


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRelease:
    """A folder whose signature and digests hold. ``key_sha256`` is worth what its comparison out of band is worth."""

    manifest: Document
    manifest_sha256: str
    key_sha256: str
    n_files: int


def verify_release_folder(folder: Path, *, expected_key_sha256: str | None = None) -> VerifiedRelease:
    """Do the four checks.

    Raises:
        NotFoundError: the folder has no manifest or no signature.
        EvidenceFaultError: a check fails; the message names the file.
    """
    manifest_bytes = _read(folder / MANIFEST)
    key_sha256 = _check_signature(manifest_bytes, _read(folder / SIGNATURE), expected_key_sha256)
    manifest = document_from_text(manifest_bytes.decode(), source=MANIFEST)
    named = as_document(manifest.get("files"), source=f"'files' in {MANIFEST}")
    for name, facts in sorted(named.items()):
        _check_file(folder, name, as_document(facts, source=f"{name} in {MANIFEST}"))
    unnamed = _files_in(folder) - set(named) - {MANIFEST, SIGNATURE}
    if unnamed:
        raise EvidenceFaultError(f"the manifest does not name {', '.join(sorted(unnamed)[:5])}", advice=_ADVICE)
    return VerifiedRelease(
        manifest=manifest,
        manifest_sha256=hashlib.sha256(manifest_bytes).hexdigest(),
        key_sha256=key_sha256,
        n_files=len(named),
    )


def unpack_release(archive: Path, target: Path) -> None:
    """Unpack a downloaded release into a new folder; the archive is not trusted to stay inside it.

    Raises:
        UsageInvalidError: the folder exists and is not empty.
        EvidenceFaultError: the archive is damaged, or holds a path that leaves the folder.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageInvalidError(f"{target} exists and is not empty", advice="Name a new folder.")
    try:
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts or "\\" in name:
                    raise EvidenceFaultError(f"the archive holds the path {name!r}", advice=_ADVICE)
            target.mkdir(parents=True, exist_ok=True)
            packed.extractall(target)
    except zipfile.BadZipFile as error:
        raise EvidenceFaultError("the download is no archive, or a damaged one", advice="Download it again.") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(
            f"there is no {path.name} in {path.parent}",
            advice="Name the folder of 'wardround releases download ID DIR'.",
        ) from error


def _check_signature(manifest: bytes, signature: bytes, expected_key_sha256: str | None) -> str:
    try:
        envelope = json.loads(signature)
        kind = text_of(envelope, "kind")
        spki = base64.b64decode(text_of(envelope, "spki"), validate=True)
        signed = SignedBody(body=manifest, signature=base64.b64decode(text_of(envelope, "signature"), validate=True))
        named_key = text_of(envelope, "key_sha256")
    except (ValueError, AttributeError, CommandError) as error:
        raise EvidenceFaultError(f"{SIGNATURE} is damaged", advice=_ADVICE, file=SIGNATURE) from error
    key_sha256 = spki_fingerprint(spki)
    if kind != SIGNATURE_KIND or named_key != key_sha256:
        raise EvidenceFaultError(f"{SIGNATURE} is not of a release", advice=_ADVICE, file=SIGNATURE)
    if expected_key_sha256 is not None and key_sha256 != expected_key_sha256.lower().replace(":", ""):
        raise EvidenceFaultError(
            "the release is signed by another key than expected", advice=_ADVICE, key_sha256=key_sha256
        )
    try:
        verify_body(spki, SIGNATURE_KIND, signed)
    except ProtocolError as error:
        message = f"the signature does not hold over {MANIFEST}: it was altered, or signed by another key"
        raise EvidenceFaultError(message, advice=_ADVICE, file=MANIFEST) from error
    return key_sha256


def _check_file(folder: Path, name: str, facts: Mapping[str, object]) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise EvidenceFaultError(f"the manifest names a file outside of the folder: {name!r}", advice=_ADVICE)
    file = folder / path
    if not file.is_file() or file.is_symlink():
        raise EvidenceFaultError(f"{name} is missing", advice=_ADVICE, file=name)
    digest = hashlib.sha256()
    n_bytes = 0
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            digest.update(chunk)
            n_bytes += len(chunk)
    if facts.get("n_bytes", n_bytes) != n_bytes or facts.get("sha256") != digest.hexdigest():
        raise EvidenceFaultError(f"{name} is not the file that was signed", advice=_ADVICE, file=name)


def _files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()}
