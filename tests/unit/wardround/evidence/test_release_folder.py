# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
"""Every file of a release, altered one by one: first by a stranger, then by whoever holds the release key."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from fl_protocol.packing import pack, u32
from fl_protocol.signing.keys import EcdsaSigner, spki_fingerprint
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.testing.entropy import seeded_signer
from wardround.errors import EvidenceFaultError, NotFoundError, UsageInvalidError
from wardround.evidence.release_folder import Standing, unpack_release, verify_release_folder

NAMED = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "README.md",
    "evidence/run_spec.json",
    "evidence/adapter_layout.json",
    "evidence/approvals.json",
    "evidence/rounds.json",
    "evidence/privacy_ledger.json",
    "evidence/audit_checkpoint.json",
)
APPROVALS = "evidence/release_approvals.json"
Change = Callable[[Any], None]


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def signed(signer: EcdsaSigner, kind: str, body: bytes) -> dict[str, str]:
    made = sign_body(signer, kind, body)
    return {"body": b64(made.body), "signature": b64(made.signature)}


def reason_of(folder: Path, **how: Any) -> tuple[object, object]:
    with pytest.raises(EvidenceFaultError) as caught:
        verify_release_folder(folder, **how)
    assert caught.value.advice
    return caught.value.facts["reason"], caught.value.facts["file"]


def test_untouched_release_verifies_and_tells_key_and_persons(made) -> None:
    verified = verify_release_folder(made.release, expected_key_sha256=spki_fingerprint(made.release_signer.spki_der))
    assert verified.n_files == len(NAMED)
    assert verified.manifest_sha256 == hashlib.sha256((made.release / "manifest.json").read_bytes()).hexdigest()
    evidence = verified.evidence
    found = (evidence.n_site_approvals, evidence.n_rounds, evidence.n_receipts, evidence.n_acknowledgements)
    # Three sites, two rounds of training and one of evaluation, and everybody is counted in each.
    assert found == (3, 3, 9, 9)
    assert [(one.user, one.role) for one in verified.signatures] == [
        ("user:lead", "study-lead"),
        ("user:privacy", "privacy-officer"),
    ]
    assert {one.authenticated_by for one in verified.signatures} == {"passphrase"}


def test_folder_holds_exactly_what_is_altered_below(made) -> None:
    files = {path.relative_to(made.release).as_posix() for path in made.release.rglob("*") if path.is_file()}
    assert files == {*NAMED, APPROVALS, "manifest.json", "manifest.sig"}


def test_candidate_verifies_as_one_and_not_as_a_release(made) -> None:
    assert verify_release_folder(made.candidate, standing=Standing.CANDIDATE).signatures == ()
    assert reason_of(made.candidate) == ("not-approved", APPROVALS)


def test_release_of_another_key_than_expected_is_refused(made) -> None:
    assert reason_of(made.release, expected_key_sha256="0" * 64) == ("another-key", "manifest.sig")


# A stranger alters a file


@pytest.mark.parametrize("file", NAMED)
@pytest.mark.parametrize("how", ["one bit", "longer", "gone", "link"])
def test_file_that_a_stranger_altered_is_refused_by_name(release, tmp_path, file, how) -> None:
    path = release / file
    content = path.read_bytes()
    match how:
        case "one bit":
            path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        case "longer":
            path.write_bytes(content + b"\n")
        case "gone":
            path.unlink()
        case _:
            (tmp_path / "elsewhere").write_bytes(content)
            path.unlink()
            path.symlink_to(tmp_path / "elsewhere")
    expected = "file-missing" if how in {"gone", "link"} else "file-altered"
    assert reason_of(release) == (expected, file)


def test_manifest_that_a_stranger_altered_is_refused(release) -> None:
    path = release / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"continues_as"', b'"continues-as"'))
    assert reason_of(release) == ("manifest-signature", "manifest.json")


@pytest.mark.parametrize("content", ["WEIGHTS", "{}", "[]", '{"kind": 1}', "[" * 100_000])
def test_signature_file_that_is_none_is_refused(release, content) -> None:
    (release / "manifest.sig").write_text(content)
    assert reason_of(release) == ("malformed", "manifest.sig")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "evidence/more.json", "evidence/release_approvals.json.bak"])
def test_file_that_nobody_signed_is_refused(release, name) -> None:
    (release / name).write_bytes(b"pickle")
    assert reason_of(release) == ("file-unnamed", name)


def test_statement_of_a_person_that_a_stranger_altered_is_refused(release) -> None:
    path = release / APPROVALS
    path.write_text(path.read_text().replace("no objection", "no objection at all"))
    assert reason_of(release) == ("approvals-signature", APPROVALS)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"approvals": {}}', "nothing", '{"approvals": []}'])
def test_persons_file_that_is_none_is_refused(release, content) -> None:
    (release / APPROVALS).write_text(content)
    assert reason_of(release) == ("malformed", APPROVALS)


# Whoever holds the release key alters a file and signs everything anew


def resign(folder: Path, made: Any, *, change: Change | None = None) -> None:
    """Name the folder's present files in a manifest, changed as wanted, and sign it; and the persons' file again."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in list(manifest["files"]):
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "n_bytes": len(content)}
    if change is not None:
        change(manifest)
    content = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(content)
    envelope = json.loads((folder / "manifest.sig").read_text())
    envelope["signature"] = b64(sign_body(made.release_signer, "WR/sig/release", content).signature)
    (folder / "manifest.sig").write_text(json.dumps(envelope))
    digest = hashlib.sha256(content).hexdigest()

    def about(approvals: Any) -> None:
        for one in (approvals, *approvals["statements"]):
            one["manifest_sha256"] = digest

    resign_persons(folder, made.release_signer, about)


def resign_persons(folder: Path, signer: EcdsaSigner, change: Change) -> None:
    document = json.loads((folder / APPROVALS).read_text())
    change(document["approvals"])
    made = sign_body(signer, "WR/sig/release-approvals", rfc8785.dumps(document["approvals"]))
    document |= {"signature": b64(made.signature), "spki": b64(signer.spki_der)}
    document["key_sha256"] = spki_fingerprint(signer.spki_der)
    (folder / APPROVALS).write_text(json.dumps(document))


def rewrite(folder: Path, file: str, change: Change) -> None:
    document = json.loads((folder / file).read_text())
    change(document)
    (folder / file).write_text(json.dumps(document))


def test_release_that_was_signed_anew_without_a_change_verifies(release, made) -> None:
    resign(release, made)
    assert len(verify_release_folder(release).signatures) == 2


def forge_site(signer: EcdsaSigner, **changes: object) -> Change:
    def change(approvals: Any) -> None:
        said = json.loads(base64.b64decode(approvals[0]["statement"]["body"])) | changes
        approvals[0]["statement"] = signed(signer, "WR/sig/approval", rfc8785.dumps(said))

    return change


def forge_round(index: int, key: str, signer: EcdsaSigner, kind: str, *, body: bytes | None = None) -> Change:
    def change(rounds: Any) -> None:
        held = base64.b64decode(rounds[index][key]["body"])
        rounds[index][key] = signed(signer, kind, held if body is None else body)

    return change


def swap_rounds(rounds: Any) -> None:
    rounds[0], rounds[1] = rounds[1], rounds[0]


def forge_acknowledgement(signer: EcdsaSigner, *, state: bytes | None = None) -> Change:
    def change(rounds: Any) -> None:
        result = rounds[0]["result"]
        m10 = SignedBody(body=base64.b64decode(result["body"]), signature=base64.b64decode(result["signature"]))
        run_id = b"run-" + b"a" * 26
        body = pack(run_id, u32(0), hashlib.sha256(m10.encode()).digest(), state or bytes(32))
        rounds[0]["acknowledgements"]["ucsf"] = signed(signer, "WR/sig/ack", body)

    return change


def forge_receipt(signer: EcdsaSigner) -> Change:
    def change(rounds: Any) -> None:
        held = base64.b64decode(rounds[0]["receipts"]["ucsf"]["body"])
        rounds[0]["receipts"]["ucsf"] = signed(signer, "WR/sig/receipt", held)

    return change


def put(path: str, value: object) -> Change:
    def change(document: Any) -> None:
        *parents, last = path.split(".")
        for key in parents:
            document = document[int(key) if key.isdigit() else key]
        document[int(last) if last.isdigit() else last] = value

    return change


EVE = seeded_signer("eve")
COORDINATOR = seeded_signer("coordinator")
SITE = seeded_signer("site charite")
FORGERIES: dict[str, tuple[str, Change, str]] = {
    "run spec of another purpose": ("evidence/run_spec.json", put("purpose", "anything"), "run-spec"),
    "another adapter layout": ("evidence/adapter_layout.json", put("peft_config.r", 4), "adapter"),
    "approval under another key": ("evidence/approvals.json", forge_site(EVE), "site-approval"),
    "approval under the key of another": (
        "evidence/approvals.json",
        forge_site(seeded_signer("site ucsf")),
        "site-approval",
    ),
    "approval of another run": (
        "evidence/approvals.json",
        forge_site(SITE, run_id="run-" + "z" * 26),
        "site-approval",
    ),
    "approval of another spec": (
        "evidence/approvals.json",
        forge_site(SITE, run_spec_sha256="0" * 64),
        "site-approval",
    ),
    "refusal in place of an approval": (
        "evidence/approvals.json",
        forge_site(SITE, decision="refused"),
        "site-approval",
    ),
    "approval left out": ("evidence/approvals.json", lambda approvals: approvals.pop(), "site-approval"),
    "round manifest under another key": (
        "evidence/rounds.json",
        forge_round(0, "manifest", EVE, "SA1/sig/M0"),
        "round-manifest",
    ),
    "round manifest of another round": (
        "evidence/rounds.json",
        lambda rounds: rounds[1].update(manifest=rounds[0]["manifest"]),
        "round-manifest",
    ),
    "result under another key": ("evidence/rounds.json", forge_round(1, "result", EVE, "SA1/sig/M10"), "round-result"),
    "another result under the right key": (
        "evidence/rounds.json",
        forge_round(1, "result", COORDINATOR, "SA1/sig/M10", body=b"another"),
        "round-result",
    ),
    "rounds swapped": ("evidence/rounds.json", swap_rounds, "round-chain"),
    "round left out": ("evidence/rounds.json", lambda rounds: rounds.pop(), "round-chain"),
    "sites counted that were not": (
        "evidence/rounds.json",
        put("0.counted_sites", ["charite", "ucsf"]),
        "round-result",
    ),
    "receipt under another key": ("evidence/rounds.json", forge_receipt(EVE), "receipt"),
    "acknowledgement under another key": ("evidence/rounds.json", forge_acknowledgement(EVE), "acknowledgement"),
    "acknowledgement of another state": (
        "evidence/rounds.json",
        forge_acknowledgement(seeded_signer("site ucsf"), state=b"\1" * 32),
        "acknowledgement",
    ),
    "ledger with an epsilon": ("evidence/privacy_ledger.json", put("epsilon", 1.0), "privacy-ledger"),
    "ledger with an entry": (
        "evidence/privacy_ledger.json",
        lambda ledger: ledger["entries"].append({"round_index": 0}),
        "privacy-ledger",
    ),
    "audit head of another size": ("evidence/audit_checkpoint.json", put("size", 2), "audit-head"),
    "audit head under another key": (
        "evidence/audit_checkpoint.json",
        put("signing_spki", b64(EVE.spki_der)),
        "audit-head",
    ),
    "audit head unsigned": ("evidence/audit_checkpoint.json", put("signature", b64(b"no signature")), "audit-head"),
}


@pytest.mark.parametrize(("file", "change", "reason"), FORGERIES.values(), ids=FORGERIES)
def test_evidence_that_the_release_key_signed_and_nobody_else_is_refused(release, made, file, change, reason) -> None:
    rewrite(release, file, change)
    resign(release, made)
    found, named = reason_of(release)
    assert (found, named) == (reason, file)


def test_weights_of_another_training_are_refused_though_the_release_key_signs_them(release, made) -> None:
    path = release / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40
    path.write_bytes(content)
    resign(release, made)
    assert reason_of(release) == ("adapter", "adapter_model.safetensors")


def test_second_file_of_weights_is_refused_though_the_release_key_signs_it(release, made) -> None:
    (release / "model.safetensors").write_bytes((release / "adapter_model.safetensors").read_bytes())

    def name_it(manifest: Any) -> None:
        manifest["files"]["model.safetensors"] = manifest["files"]["adapter_model.safetensors"]

    resign(release, made, change=name_it)
    assert reason_of(release) == ("adapter", "model.safetensors")


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("run_spec_sha256", "0" * 64, "run-spec"),
        ("purpose", "anything", "run-spec"),
        ("base_model.sha256", "0" * 64, "run-spec"),
        ("cohort.0.signing_key_sha256", "0" * 64, "run-spec"),
        ("approvals.0.statement_sha256", "0" * 64, "site-approval"),
        ("rounds.0.result_sha256", "0" * 64, "round-result"),
        ("rounds.0.state_sha256_after", "0" * 64, "acknowledgement"),
        ("rounds.1.sum_sha256", "0" * 64, "round-result"),
        ("public_state.sha256", "0" * 64, "round-chain"),
        ("continues_as", "0" * 64, "adapter"),
        ("privacy.epsilon", 0.5, "privacy-ledger"),
        ("audit.head", "0" * 64, "audit-head"),
        ("audit.size", 10_000, "audit-head"),
        ("coordinator_signing_key_sha256", "0" * 64, "audit-head"),
        ("cohort", "everybody", "malformed"),
        ("format", "wardround-release/1", "format-unknown"),
        ("format", None, "format-unknown"),
        ("rounds.0.counted_sites", 7, "round-result"),
    ],
)
def test_manifest_that_says_other_than_its_evidence_is_refused(release, made, path, value, reason) -> None:
    resign(release, made, change=put(path, value))
    assert reason_of(release)[0] == reason


def test_manifest_that_names_a_file_outside_of_the_folder_is_refused(release, made) -> None:
    resign(release, made, change=put("files", {"../secret": {"sha256": "0" * 64, "n_bytes": 1}}))
    assert reason_of(release) == ("path-outside", "../secret")


@pytest.mark.parametrize("file", [name for name in NAMED if name.startswith("evidence/")])
def test_evidence_that_the_manifest_leaves_out_is_missed(release, made, file) -> None:
    (release / file).unlink()
    manifest = json.loads((release / "manifest.json").read_text())
    del manifest["files"][file]
    (release / "manifest.json").write_text(json.dumps(manifest))
    resign(release, made)
    assert reason_of(release) == ("file-missing", file)


def one_person_twice(approvals: Any) -> None:
    approvals["statements"][1] |= {"user": "user:lead"}


def one_role_twice(approvals: Any) -> None:
    approvals["statements"][1] |= {"role": "study-lead"}


def one_only(approvals: Any) -> None:
    approvals["statements"].pop()


def one_by_rule(approvals: Any) -> None:
    one_only(approvals)
    approvals["signatures_needed"] = 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (one_person_twice, "same-person"),
        (one_role_twice, "same-role"),
        (one_only, "signatures-missing"),
        (one_by_rule, "one-signature"),
        (put("statements", []), "signatures-missing"),
        (put("statements.0.meaning", " "), "signatures-missing"),
        (put("statements.0.manifest_sha256", "0" * 64), "approvals-about-another"),
        (put("statements.1.release_id", "rel-other"), "approvals-about-another"),
        (put("manifest_sha256", "0" * 64), "approvals-about-another"),
        (put("release_id", "rel-other"), "approvals-about-another"),
        (put("audit_checkpoint.signature", b64(b"none")), "audit-head"),
        (put("statements.0.marks", None), "malformed"),
        (put("signatures_needed", "two"), "malformed"),
    ],
)
def test_signatures_of_persons_that_do_not_make_a_release_are_refused(release, made, change, reason) -> None:
    resign_persons(release, made.release_signer, change)
    assert reason_of(release) == (reason, APPROVALS)


def test_signatures_that_another_key_than_the_releases_attests_are_refused(release) -> None:
    resign_persons(release, EVE, lambda _: None)
    assert reason_of(release) == ("approvals-signature", APPROVALS)


def test_signatures_of_another_release_of_the_same_key_are_refused(release, made) -> None:
    # A release is made again from the same run: its manifest has another instant, so that it was not signed.
    approvals = (release / APPROVALS).read_bytes()
    resign(release, made, change=put("created_at", "2027-01-01T00:00:00+00:00"))
    (release / APPROVALS).write_bytes(approvals)
    assert reason_of(release) == ("approvals-about-another", APPROVALS)


# Unpacking


def test_folder_without_manifest_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"manifest\.json"):
        verify_release_folder(tmp_path)


def test_archive_is_unpacked_into_a_new_folder_that_verifies(release: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", release))
    unpack_release(archive, tmp_path / "unpacked")
    assert verify_release_folder(tmp_path / "unpacked").n_files == len(NAMED)


def test_archive_is_not_unpacked_over_something(release: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", release))
    with pytest.raises(UsageInvalidError, match="not empty"):
        unpack_release(archive, release)


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "..\\outside"])
def test_archive_with_a_path_that_leaves_the_folder_is_refused_whole(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("fine", b"")
        packed.writestr(name, b"")
    with pytest.raises(EvidenceFaultError):
        unpack_release(archive, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_damaged_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    with pytest.raises(EvidenceFaultError):
        unpack_release(tmp_path / "bad.zip", tmp_path / "target")
