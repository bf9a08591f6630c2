"""Make one dataset of cell images a site from BCCD's blood smears: another stain and lamp at each site.

BCCD's photographs come from one microscope and are alike, so what differs between hospitals is put in: each photograph
belongs to one domain, and the domain's stain strength and lamp are applied to all its cells. Light through a stain
falls off exponentially (Beer and Lambert), so a stain that is s times as strong turns a brightness b in [0, 1] into b
** s; the lamp then multiplies each channel. The photographs of the last domain go to no site: they are ``unseen.csv``.

    python examples/blood-cells/prepare.py --data BCCD --sites 3 --out DIR
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {"RBC": "red blood cell", "WBC": "white blood cell", "Platelets": "platelet"}
"""BCCD's labels, and what they are called in the run."""

MOST_A_PHOTOGRAPH = {"RBC": 1, "WBC": 2, "Platelets": 2}
"""Red cells are eleven times as frequent as the others; of each photograph so many cells are taken."""

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_OBJECT = re.compile(r"<object>.*?<name>([^<]*)</name>(.*?)</object>", re.DOTALL)
_SIDE = re.compile(r"<(xmin|ymin|xmax|ymax)>(\d+)</")

_MARGIN = 0.15
_SMALLEST = 16
_HASH = "wardround/blood-cells/"


class PreparationError(Exception):
    """The datasets cannot be made; the sentence says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """How one laboratory's photographs look: stain strength, and what the lamp leaves of red, green and blue."""

    name: str
    stain: float
    lamp: tuple[float, float, float]


UNSEEN = Domain(name="faint stain, cold lamp", stain=0.55, lamp=(0.72, 0.86, 1.0))
DOMAINS = (
    Domain(name="as photographed", stain=1.0, lamp=(1.0, 1.0, 1.0)),
    Domain(name="strong stain, warm lamp", stain=1.7, lamp=(1.0, 0.9, 0.72)),
    Domain(name="dim lamp", stain=1.0, lamp=(0.55, 0.55, 0.55)),
    Domain(name="strong stain", stain=2.2, lamp=(1.0, 1.0, 1.0)),
    Domain(name="weak stain, dim warm lamp", stain=0.7, lamp=(0.7, 0.62, 0.5)),
    Domain(name="greenish lamp", stain=1.2, lamp=(0.75, 1.0, 0.8)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One labelled box of a photograph, in pixels."""

    photograph: str
    label: str
    box: tuple[int, int, int, int]


def read_cells(data: Path) -> dict[str, list[Cell]]:
    """The cells that are used, by photograph.

    Raises:
        PreparationError: the folder does not hold BCCD as the README describes it.
    """
    try:
        cells = cells_of_table(data / "cells.csv") if (data / "cells.csv").is_file() else cells_as_published(data)
    except (OSError, KeyError, ValueError) as error:
        message = f"{data} does not hold BCCD: {type(error).__name__}; the study's README says what it looks like"
        raise PreparationError(message) from error
    used: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        # Boxes of a few pixels are slips of the labelling.
        is_whole = min(cell.box[2] - cell.box[0], cell.box[3] - cell.box[1]) >= _SMALLEST
        n_before = sum(other.label == cell.label for other in used[cell.photograph])
        if is_whole and n_before < MOST_A_PHOTOGRAPH.get(cell.label, 0):
            used[cell.photograph].append(cell)
    return used


def cells_of_table(path: Path) -> list[Cell]:
    """The cells of a table with the columns image, label, xmin, ymin, xmax, ymax."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Cell(photograph=row["image"], label=row["label"], box=_box(row[name] for name in _SIDES))
            for row in csv.DictReader(file)
        ]


def cells_as_published(data: Path) -> list[Cell]:
    """The cells of the annotations that BCCD is published with: one XML file a photograph."""
    cells: list[Cell] = []
    for path in sorted((data / "Annotations").glob("*.xml")):
        # Five tags of a known form: no parser of XML, which may be told to read other files, is needed for that.
        for found in _OBJECT.finditer(path.read_text(encoding="utf-8")):
            sides = dict(_SIDE.findall(found.group(2)))
            box = _box(sides[name] for name in _SIDES)
            cells.append(Cell(photograph=f"{path.stem}.jpg", label=found.group(1).strip(), box=box))
    if not cells:
        raise FileNotFoundError(data)
    return cells


def _box(sides: Iterable[str]) -> tuple[int, int, int, int]:
    left, above, right, below = (int(side) for side in sides)
    return left, above, right, below


def share_out(photographs: Sequence[str], n_domains: int) -> list[list[str]]:
    """Deal the photographs to the domains in the order of a hash of their names: equally many each, always alike."""
    ordered = sorted(photographs, key=lambda name: hashlib.sha256((_HASH + name).encode()).digest())
    return [ordered[number::n_domains] for number in range(n_domains)]


def cut_out(photograph: Image.Image, cell: Cell, domain: Domain) -> Image.Image:
    """A cell with a margin, as the domain's microscope shows it."""
    left, above, right, below = cell.box
    margin = round(_MARGIN * max(right - left, below - above))
    box = (
        max(0, left - margin),
        max(0, above - margin),
        min(photograph.width, right + margin),
        min(photograph.height, below + margin),
    )
    brightness = np.asarray(photograph.crop(box), dtype=np.float64) / 255
    shown = brightness**domain.stain * np.array(domain.lamp)
    return Image.fromarray(np.rint(shown.clip(0, 1) * 255).astype(np.uint8))


def write_domain(
    data: Path, out: Path, name: str, cells: Mapping[str, Sequence[Cell]], domain: Domain
) -> dict[str, object]:
    """Write a domain's images and its manifest; the photograph stands for the patient."""
    (out / name).mkdir(parents=True, exist_ok=True)
    photographs = next((data / name for name in ("images", "JPEGImages") if (data / name).is_dir()), data)
    rows: list[tuple[str, str, str]] = []
    counts: dict[str, int] = defaultdict(int)
    for photograph, of_photograph in cells.items():
        with Image.open(photographs / photograph) as image:
            colours = image.convert("RGB")
        for number, cell in enumerate(of_photograph):
            file = f"{name}/{Path(photograph).stem}-{number}.png"
            cut_out(colours, cell, domain).save(out / file)
            rows.append((file, CLASSES[cell.label], Path(photograph).stem))
            counts[CLASSES[cell.label]] += 1
    with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as manifest:
        writer = csv.writer(manifest)
        writer.writerow(("image", "label", "patient_id"))
        writer.writerows(rows)
    return {"path": str(out / f"{name}.csv"), "domain": domain.name, "records": len(rows), "classes": dict(counts)}


def prepare(data: Path, n_sites: int, out: Path) -> dict[str, object]:
    """Write ``site-1.csv`` to ``site-N.csv`` and ``unseen.csv`` with their images into ``out``.

    Raises:
        PreparationError: the data are not there, or there are more sites than domains.
    """
    if not 1 <= n_sites <= len(DOMAINS):
        raise PreparationError(f"the study has {len(DOMAINS)} domains: choose 1 to {len(DOMAINS)} sites")
    cells = read_cells(data)
    if not cells:
        raise PreparationError(f"{data} lists no cell")
    domains = {f"site-{number}": domain for number, domain in enumerate(DOMAINS[:n_sites], start=1)}
    domains["unseen"] = UNSEEN
    shares = share_out(sorted(cells), len(domains))
    sites = [
        write_domain(data, out, name, {photograph: cells[photograph] for photograph in sorted(share)}, domain)
        for (name, domain), share in zip(domains.items(), shares, strict=True)
    ]
    return {"source": "BCCD", "photographs": len(cells), "sites": sites[:-1], "unseen": sites[-1]}


def main() -> int:
    """Read the command line; 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="BCCD's folder, see README.md")
    parser.add_argument("--sites", type=int, default=3, help="how many datasets to make (default: 3)")
    parser.add_argument("--out", type=Path, required=True, help="the folder that they are written to")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    try:
        summary = prepare(arguments.data, arguments.sites, arguments.out)
    except (PreparationError, OSError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(summary))
        return 0
    for site in [*summary["sites"], summary["unseen"]] if isinstance(summary["sites"], list) else []:
        print(f"{site['path']}: {site['records']} records, {site['domain']}, {site['classes']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
