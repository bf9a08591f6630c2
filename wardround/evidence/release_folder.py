"""Is a release folder what the coordinator signed? Needs the folder only; the key's fingerprint is to be compared.

1. manifest.sig names the kind WR/sig/release, and its key has the fingerprint that it says (and the one expected)
2. the signature holds over the exact bytes of manifest.json, which is of the form that this program reads
3. every file of the manifest is there with its size and SHA-256
4. no file is there that the manifest does not name, but for the persons' signatures, which are over the manifest
5. the evidence is what the manifest says of it (``release_evidence``)
6. two persons signed the manifest, and the release key attests it (``release_approvals``)
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath

from fl_protocol.signing.keys import spki_fingerprint
from fl_protocol.signing.signed import SignedBody
from wardround.documents import Document, as_document, document_from_text, text_of
from wardround.errors import EvidenceFaultError, NotFoundError, UsageInvalidError
from wardround.evidence.release_approvals import RELEASE_APPROVALS, PersonSignature, verify_release_approvals
from wardround.evidence.release_evidence import VerifiedEvidence, verify_release_evidence
from wardround.evidence.release_faults import ADVICE, ReleaseFault, bytes_under, fault, is_signed_by, reading

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
SIGNATURE_KIND = "WR/sig/release"
FORMAT = "wardround-release/2"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRelease:
    """A folder of which everything holds. ``key_sha256`` is worth what its comparison out of band is worth.

    ``signatures`` is empty for a candidate, which nobody has released.
    """

    manifest: Document
    manifest_sha256: str
    key_sha256: str
    n_files: int
    evidence: VerifiedEvidence
    signatures: tuple[PersonSignature, ...]


class Standing(StrEnum):
    """As what a folder is looked at."""

    RELEASE = "release"
    ONE_SIGNATURE = "one-signature"
    CANDIDATE = "candidate"


def verify_release_folder(
    folder: Path, *, expected_key_sha256: str | None = None, standing: Standing = Standing.RELEASE
) -> VerifiedRelease:
    """Do the six checks.

    Args:
        folder: as it was unpacked.
        expected_key_sha256: what the coordinator's operator told; None to take the key that is there.
        standing: RELEASE asks for two persons; ONE_SIGNATURE lets one do where the coordinator's rule is so; CANDIDATE
            leaves the sixth check out, for those who are about to sign.

    Raises:
        NotFoundError: the folder has no manifest or no signature.
        EvidenceFaultError: a check fails; ``reason`` (a ``ReleaseFault``) and ``file`` are among its facts.
    """
    manifest_bytes = _read(folder / MANIFEST)
    key_sha256 = _check_signature(manifest_bytes, _read(folder / SIGNATURE), expected_key_sha256)
    manifest = reading(MANIFEST, lambda: document_from_text(manifest_bytes.decode(), source=MANIFEST))
    if manifest.get("format") != FORMAT:
        message = f"the folder is of the form {str(manifest.get('format'))[:40]!r}; this program reads {FORMAT}"
        advice = "Verify it with the version of Wardround that made it, or have it released again."
        raise fault(ReleaseFault.FORMAT_UNKNOWN, message, file=MANIFEST, advice=advice)
    n_files = _check_files(folder, manifest)
    evidence = verify_release_evidence(folder, manifest)
    manifest_sha256 = hashlib.sha256(manifest_bytes).hexdigest()
    signatures: tuple[PersonSignature, ...] = ()
    if standing is not Standing.CANDIDATE:
        signatures = verify_release_approvals(
            folder,
            manifest,
            manifest_sha256=manifest_sha256,
            key_sha256=key_sha256,
            accept_one=standing is Standing.ONE_SIGNATURE,
        )
    return VerifiedRelease(
        manifest=manifest,
        manifest_sha256=manifest_sha256,
        key_sha256=key_sha256,
        n_files=n_files,
        evidence=evidence,
        signatures=signatures,
    )


def _check_files(folder: Path, manifest: Document) -> int:
    named = reading(MANIFEST, lambda: as_document(manifest.get("files"), source=f"'files' in {MANIFEST}"))
    for name, facts in sorted(named.items()):
        reading(MANIFEST, lambda name=name, facts=facts: _check_file(folder, name, as_document(facts, source=name)))  # type: ignore[misc] # bound now, called now
    unnamed = _files_in(folder) - set(named) - {MANIFEST, SIGNATURE, RELEASE_APPROVALS}
    if unnamed:
        listed = ", ".join(sorted(unnamed)[:5])
        raise fault(ReleaseFault.FILE_UNNAMED, f"the manifest does not name {listed}", file=listed)
    return len(named)


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
                    raise EvidenceFaultError(f"the archive holds the path {name!r}", advice=ADVICE)
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
    envelope = reading(SIGNATURE, lambda: document_from_text(signature.decode(), source=SIGNATURE))
    kind, named_key = reading(SIGNATURE, lambda: (text_of(envelope, "kind"), text_of(envelope, "key_sha256")))
    spki, signed = reading(
        SIGNATURE,
        lambda: (
            bytes_under(envelope, "spki"),
            SignedBody(body=manifest, signature=bytes_under(envelope, "signature")),
        ),
    )
    key_sha256 = spki_fingerprint(spki)
    if kind != SIGNATURE_KIND or named_key != key_sha256:
        raise fault(ReleaseFault.MANIFEST_SIGNATURE, f"{SIGNATURE} is not of a release", file=SIGNATURE)
    if expected_key_sha256 is not None and key_sha256 != expected_key_sha256.lower().replace(":", ""):
        raise fault(
            ReleaseFault.ANOTHER_KEY,
            f"the release is signed by another key than expected: {key_sha256}",
            file=SIGNATURE,
        )
    if not is_signed_by(spki, SIGNATURE_KIND, signed):
        message = f"the signature does not hold over {MANIFEST}: it was altered, or signed by another key"
        raise fault(ReleaseFault.MANIFEST_SIGNATURE, message, file=MANIFEST)
    return key_sha256


def _check_file(folder: Path, name: str, facts: Document) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        message = f"the manifest names a file outside of the folder: {name!r}"
        raise fault(ReleaseFault.PATH_OUTSIDE, message, file=name)
    file = folder / path
    if not file.is_file() or file.is_symlink():
        raise fault(ReleaseFault.FILE_MISSING, f"{name} is missing", file=name)
    digest = hashlib.sha256()
    n_bytes = 0
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            digest.update(chunk)
            n_bytes += len(chunk)
    if facts.get("n_bytes") != n_bytes or facts.get("sha256") != digest.hexdigest():
        raise fault(ReleaseFault.FILE_ALTERED, f"{name} is not the file that was signed", file=name)


def _files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()}
