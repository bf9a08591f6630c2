"""A manifest is read strictly; each fault is told by line and column, never by what stands there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from site_agent.training.errors import DatasetEmptyError, DatasetMissingError
from site_agent.training.images import manifest as manifest_module
from site_agent.training.images.errors import ImageMissingError, ImageRefusedError, ManifestInvalidError
from site_agent.training.images.manifest import records_of_manifest, scan_manifest

pytestmark = pytest.mark.training

SECRET = "Xylophone-4711"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "cells").mkdir(parents=True)
    (folder / "cells" / "a.png").write_bytes(b"image a")
    (folder / "b.png").write_bytes(b"image b")
    return folder


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "manifest.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def faults(path: Path) -> list[tuple[int, str | None, str]]:
    scan = scan_manifest(path, patient_field="patient_id")
    assert scan.n_faults == len(scan.faults)
    return [(fault.line, fault.column, fault.fault.value) for fault in scan.faults]


def test_each_row_becomes_a_record(folder: Path) -> None:
    path = write(
        folder,
        "image,labels,text,patient_id,frame\n"
        "cells/a.png,RBC;-WBC,,p1,\n"
        'b.png,,"seen,\nwith care",p1,3\n'
        ",WBC,many neutrophils,p2,\n",
    )
    records, _ = records_of_manifest(path, patient_field="patient_id")
    assert [record.record_id for record in records] == ["cells/a.png", "b.png#3", "line 5"]
    assert [record.line for record in records] == [2, 3, 5]
    assert [dict(record.labels) for record in records] == [{"RBC": 1, "WBC": -1}, {}, {"WBC": 1}]
    assert [record.text for record in records] == [None, "seen,\nwith care", "many neutrophils"]
    assert [record.person for record in records] == ["p1", "p1", "p2"]
    assert records[1].image is not None
    assert (records[1].image.frame, records[1].image.path) == (3, (folder / "b.png").resolve())
    assert records[1].image.sha256 == hashlib.sha256(b"image b").hexdigest()
    assert records[2].image is None
    assert "a.png" not in repr(records[0])
    assert "a.png" not in repr(records[0].image)


def test_label_column_is_one_class_whose_name_may_not_deny(folder: Path) -> None:
    path = write(folder, "image,label\nb.png,white cell; segmented\ncells/a.png,-WBC\n")
    assert faults(path) == [(2, "label", "not-a-label"), (3, "label", "not-a-label")]


def test_digest_is_over_the_manifest_and_every_image(folder: Path) -> None:
    path = write(folder, "image,label\ncells/a.png,A\nb.png,B\n")
    _, sha256 = records_of_manifest(path, patient_field="patient_id")
    expected = hashlib.sha256(b"wardround/image-manifest/1\n" + hashlib.sha256(path.read_bytes()).digest())
    for name, content in (("b.png", b"image b"), ("cells/a.png", b"image a")):
        expected.update(name.encode() + b"\x00" + hashlib.sha256(content).digest())
    assert sha256 == expected.hexdigest()
    (folder / "b.png").write_bytes(b"image c")
    assert records_of_manifest(path, patient_field="patient_id")[1] != sha256


def test_split_is_by_patient_and_that_of_other_datasets(folder: Path) -> None:
    path = write(folder, "image,patient_id\nb.png,p1\ncells/a.png,p1\n")
    (one, two), _ = records_of_manifest(path, patient_field="patient_id")
    expected = int.from_bytes(hashlib.sha256(b"wardround/split/p1").digest()[:8], "big")
    assert one.split_hash == two.split_hash == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfimage\nb.png\n", []),
        (b"", [(1, None, "no-header")]),
        (b"label\nA\n", [(1, "image", "column-missing"), (1, "id", "column-missing")]),
        (b"text\nwords\n", [(1, "id", "column-missing")]),
        (b"image,colour\nb.png,red\n", [(1, None, "unknown-column")]),
        (b"image,image\nb.png,b.png\n", [(1, "image", "column-twice")]),
        (b"image,label,labels\nb.png,A,A\n", [(1, "labels", "column-twice")]),
        (b"image\nb.png,more\nb.png\n", [(2, None, "wrong-number-of-fields")]),
        (b"image,text\n,\n", [(2, None, "neither-image-nor-text")]),
        (b"image,patient_id\nb.png, \n", [(2, "patient_id", "blank")]),
        (b"image,labels\nb.png,A;A\n", [(2, "labels", "label-twice")]),
        (b"image,labels\nb.png,A;=cmd\n", [(2, "labels", "not-a-label")]),
        (b"image,frame\nb.png,-1\ncells/a.png,01\n", [(2, "frame", "not-a-frame"), (3, "frame", "not-a-frame")]),
        (b"image\nb.png\nb.png\n", [(3, "image", "id-twice")]),
        (b"id,text\nx,one\nx,two\n", [(3, "id", "id-twice")]),
        (b"image\nb.png\n\xff\n", [(3, None, "not-utf-8")]),
        (b'image,text\nb.png,"open\n', [(2, None, "not-csv")]),
        (b"image\nc.png\n", [(2, "image", "missing")]),
        (b"image\ncells\n", [(2, "image", "missing")]),
    ],
)
def test_each_fault_is_told_by_line_and_column(
    folder: Path, content: bytes, expected: list[tuple[int, str | None, str]]
) -> None:
    assert faults(write(folder, content)) == expected


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "cells/../../secret.png", "{absolute}", "cells\\..\\..\\secret.png", "C:secret.png", "link.png"],
)
def test_path_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    secret = folder.parent / "secret.png"
    secret.write_bytes(b"another hospital's")
    (folder / "link.png").symlink_to(secret)
    path = write(folder, f"image\n{name.format(absolute=secret)}\n")
    assert faults(path) == [(2, "image", "leads-out-of-the-folder")]
    with pytest.raises(ImageRefusedError) as caught:
        records_of_manifest(path, patient_field="patient_id")
    assert "secret" not in str(caught.value)
    assert caught.value.facts["record"] == 2


def test_link_inside_the_folder_is_followed(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder / "b.png")
    assert faults(write(folder, "image\nlink.png\n")) == []


def test_what_is_no_plain_file_is_not_opened(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    assert faults(write(folder, "image\npipe.png\n")) == [(2, "image", "missing")]


def test_large_file_is_refused_before_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "MAX_IMAGE_BYTES", 6)
    assert faults(write(folder, "image\nb.png\n")) == [(2, "image", "file-too-large")]
    monkeypatch.setattr(manifest_module, "MAX_MANIFEST_BYTES", 6)
    assert faults(write(folder, "image\nb.png\n")) == [(1, None, "too-large")]


def test_first_fault_is_a_typed_error_that_quotes_nothing(folder: Path) -> None:
    path = write(folder, f"image,label\nb.png,A\n{SECRET}.png,B\n")
    with pytest.raises(ImageMissingError) as caught:
        records_of_manifest(path, patient_field="patient_id")
    assert caught.value.facts == {"file": "image", "record": 3, "fault": "missing", "field": "image"}
    path = write(folder, f"image,label\nb.png,={SECRET}\n")
    with pytest.raises(ManifestInvalidError) as invalid:
        records_of_manifest(path, patient_field="patient_id")
    assert invalid.value.facts == {"file": "manifest", "record": 2, "fault": "not-a-label", "field": "label"}
    assert SECRET not in str(caught.value) + str(invalid.value)


def test_faults_beyond_the_list_are_counted(folder: Path) -> None:
    path = write(folder, "image\n" + "".join(f"x{k}.png\n" for k in range(70)))
    scan = scan_manifest(path, patient_field="patient_id")
    assert (scan.n_rows, scan.n_faults, len(scan.faults)) == (70, 70, 50)


def test_missing_and_empty_manifests_are_told_apart(folder: Path) -> None:
    with pytest.raises(DatasetMissingError):
        scan_manifest(folder / "none.csv", patient_field="patient_id")
    with pytest.raises(DatasetEmptyError):
        scan_manifest(write(folder, "image,label\n"), patient_field="patient_id")
