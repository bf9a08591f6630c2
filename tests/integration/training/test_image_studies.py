"""The studies on images make their datasets from BCCD in either form; what they make, the trainer reads."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fl_protocol.spec.run_spec import parse_run_spec
from site_agent.training.formats import format_called
from site_agent.training.images.records import ImageTextRecord

pytestmark = pytest.mark.training

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"
BOXES = {"RBC": (10, 20, 50, 60), "WBC": (60, 20, 120, 80), "Platelets": (5, 70, 25, 90)}
N_PHOTOGRAPHS = 16


@pytest.fixture
def photographs(tmp_path: Path) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(6)
    return {f"P{k}": generator.integers(40, 220, (100, 130, 3), dtype=np.uint8) for k in range(N_PHOTOGRAPHS)}


@pytest.fixture
def as_table(tmp_path: Path, photographs: dict[str, np.ndarray]) -> Path:
    folder = tmp_path / "table"
    (folder / "images").mkdir(parents=True)
    with (folder / "cells.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "label", "xmin", "ymin", "xmax", "ymax", "split"))
        for name, pixels in photographs.items():
            Image.fromarray(pixels).save(folder / "images" / f"{name}.jpg", quality=100, subsampling=0)
            writer.writerows((f"{name}.jpg", label, *box, "train") for label, box in BOXES.items())
            # A second red cell is one too many, and a box of three pixels is a slip.
            writer.writerow((f"{name}.jpg", "RBC", 50, 50, 90, 90, "train"))
            writer.writerow((f"{name}.jpg", "WBC", 50, 50, 53, 90, "train"))
    return folder


@pytest.fixture
def as_published(tmp_path: Path, as_table: Path) -> Path:
    folder = tmp_path / "published"
    (folder / "Annotations").mkdir(parents=True)
    (as_table / "images").rename(folder / "JPEGImages")
    (as_table / "images").mkdir()
    for path in (folder / "JPEGImages").iterdir():
        (as_table / "images" / path.name).write_bytes(path.read_bytes())
        objects = "".join(
            f"<object>\n<name>{label}</name><pose>x</pose><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
            f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>\n"
            for label, box in BOXES.items()
        )
        (folder / "Annotations" / f"{path.stem}.xml").write_text(f"<annotation>{objects}</annotation>")
    return folder


def prepared(study: str, data: Path, out: Path, *, sites: int) -> dict[str, object]:
    program = str(EXAMPLES / study / "prepare.py")
    words = ("--data", str(data), "--sites", str(sites), "--out", str(out), "--json")
    done = subprocess.run([sys.executable, program, *words], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    summary: dict[str, object] = json.loads(done.stdout)
    return summary


def records(path: Path) -> list[ImageTextRecord]:
    return list(format_called("image-manifest").read(path, patient_field="patient_id").records)  # type: ignore[arg-type]


def test_each_site_has_photographs_of_its_own_and_nobody_the_unseen_ones(tmp_path: Path, as_table: Path) -> None:
    summary = prepared("blood-cells", as_table, tmp_path / "out", sites=3)
    assert summary["photographs"] == N_PHOTOGRAPHS
    patients = []
    for name in ("site-1", "site-2", "site-3", "unseen"):
        of_site = records(tmp_path / "out" / f"{name}.csv")
        patients.append({record.patient_id for record in of_site})
        labels = [next(iter(record.labels)) for record in of_site]
        assert len(of_site) == 12
        assert labels.count("red blood cell") == labels.count("white blood cell") == labels.count("platelet") == 4
    assert len(set.union(*patients)) == sum(len(one) for one in patients) == N_PHOTOGRAPHS


def test_published_annotations_give_the_same_cells_as_the_table(
    tmp_path: Path, as_table: Path, as_published: Path
) -> None:
    for name, data in (("a", as_table), ("b", as_published)):
        prepared("blood-cells", data, tmp_path / name, sites=3)
    for site in ("site-1", "site-3", "unseen"):
        ones, others = (records(tmp_path / name / f"{site}.csv") for name in ("a", "b"))
        assert [(one.record_id, dict(one.labels)) for one in ones] == [(o.record_id, dict(o.labels)) for o in others]
        assert [one.image.sha256 for one in ones] == [other.image.sha256 for other in others]


def test_stain_and_lamp_are_the_equation_of_the_readme(tmp_path: Path, as_table: Path) -> None:
    prepared("blood-cells", as_table, tmp_path / "out", sites=3)
    domains = {"site-2": (1.7, (1.0, 0.9, 0.72)), "unseen": (0.55, (0.72, 0.86, 1.0))}
    for site, (stain, lamp) in domains.items():
        cell = next(one for one in records(tmp_path / "out" / f"{site}.csv") if "white blood cell" in one.labels)
        with Image.open(as_table / "images" / f"{cell.patient_id}.jpg") as photograph:
            # 60 pixels wide and high, and a margin of 15 percent on each side.
            before = np.asarray(photograph.convert("RGB"), dtype=np.float64)[11:89, 51:129] / 255
        with Image.open(cell.image.path) as shown:
            after = np.asarray(shown, dtype=np.float64)
        np.testing.assert_allclose(after, before**stain * np.array(lamp) * 255, atol=0.51)


def test_last_site_of_the_words_has_texts_only(tmp_path: Path, as_table: Path) -> None:
    prepared("blood-cells-and-words", as_table, tmp_path / "out", sites=4)
    words = records(tmp_path / "out" / "site-4.csv")
    assert len(words) > 500
    assert all(record.image is None and not record.labels and record.text for record in words)
    texts = {record.record_id: record.text or "" for record in words}
    assert texts["HP:0001873"].startswith("Thrombocytopenia. ")
    assert all(record.image is not None for record in records(tmp_path / "out" / "site-3.csv"))


@pytest.mark.parametrize("study", ["blood-cells", "blood-cells-and-words"])
def test_folder_without_the_data_is_refused_with_where_to_look(tmp_path: Path, study: str) -> None:
    program = str(EXAMPLES / study / "prepare.py")
    words = ("--data", str(tmp_path), "--out", str(tmp_path / "out"))
    done = subprocess.run([sys.executable, program, *words], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "README" in done.stderr


@pytest.mark.parametrize("study", ["blood-cells", "blood-cells-and-words"])
def test_specification_is_valid_and_names_what_the_datasets_are_labelled_with(study: str) -> None:
    spec = parse_run_spec(yaml.safe_load((EXAMPLES / study / "run.yaml").read_text()))
    names = {one["name"] for one in spec.task.to_document()["classes"]}  # type: ignore[index,union-attr]
    assert names == {"red blood cell", "white blood cell", "platelet"}
