"""Make one dataset a site from MedQuAD: questions and answers of nine web sites of the National Institutes of Health.

The nine sources differ in topic, size and style, so that each is a natural silo. A record asks one question; the answer
is the source's own, its white space folded. This program knows neither models nor runs: it reads a folder and writes
JSONL. It reads MedQuAD as its authors publish it (folders of XML) or as one gzipped JSONL file a source.

    python examples/nih-answers/prepare.py --data MEDQUAD --sites 9 --out DIR
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

SOURCES = ("cancergov", "gard", "ghr", "medlineplus", "niddk", "ninds", "seniorhealth", "nhlbi", "cdc")
"""In the order of MedQuAD's numbered folders. Folders 10 to 12 hold questions whose answers may not be given on."""


class PreparationError(Exception):
    """The datasets cannot be made; the sentence says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One question with its answer. ``focus`` is what it is about: most often a disease."""

    question_id: str
    focus: str
    question: str
    answer: str


def read_source(folder: Path, source: str) -> list[Answered]:
    """Every question of a source that has an answer, each pair of question and answer once, in the files' order.

    Raises:
        PreparationError: the folder does not hold the source.
    """
    packed = folder / f"{source}.jsonl.gz"
    unpacked = sorted(folder.glob(f"{SOURCES.index(source) + 1}_*"))
    if packed.is_file():
        found = _from_jsonl(packed)
    elif unpacked and unpacked[0].is_dir():
        found = _from_xml(unpacked[0])
    else:
        message = f"{folder} holds no source {source!r}; examples/nih-answers/README.md says where MedQuAD comes from"
        raise PreparationError(message)
    first: dict[tuple[str, str], Answered] = {}
    for one in found:
        if one.question and one.answer:
            first.setdefault((one.question, one.answer), one)
    if not first:
        raise PreparationError(f"source {source!r} in {folder} holds no answered question")
    return list(first.values())


def _from_jsonl(path: Path) -> Iterator[Answered]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            yield Answered(
                question_id=record["id"],
                focus=_folded(record["focus"]),
                question=_folded(record["question"]),
                answer=_folded(record["answer"]),
            )


def _from_xml(folder: Path) -> Iterator[Answered]:
    for path in sorted(folder.glob("*.xml")):
        document = ET.parse(path).getroot()  # noqa: S314 - a published data set that the user put there
        focus = _folded(document.findtext("Focus") or "")
        for pair in document.iter("QAPair"):
            question = pair.find("Question")
            yield Answered(
                question_id=f"{path.stem}-{pair.get('pid', '')}",
                focus=focus,
                question=_folded("" if question is None else question.text or ""),
                answer=_folded(pair.findtext("Answer") or ""),
            )


def _folded(text: str) -> str:
    return " ".join(text.split())


def records_of_source(source: str, answered: list[Answered]) -> list[dict[str, str]]:
    """A source's records.

    What a question is about stands for its patient, in lower case and without the source, so that all that is asked
    about one disease is trained on at every site or held out at every site.
    """
    seen: dict[str, int] = defaultdict(int)
    records: list[dict[str, str]] = []
    for one in answered:
        # Several questions of the source cancergov have the same number.
        seen[one.question_id] += 1
        suffix = "" if seen[one.question_id] == 1 else f"-{seen[one.question_id]}"
        about = one.focus.lower() or f"{source} {one.question_id}"
        records.append(
            {
                "id": f"{source}/{one.question_id}{suffix}",
                "prompt": one.question,
                "completion": one.answer,
                "patient_id": about,
            }
        )
    return records


def share_out(sizes: Mapping[str, int], n_sites: int) -> list[list[str]]:
    """Give each source to one site: the largest first, each to the site that has the fewest records so far.

    Raises:
        PreparationError: there are more sites than sources.
    """
    if not 1 <= n_sites <= len(sizes):
        raise PreparationError(f"MedQuAD has {len(sizes)} sources: choose 1 to {len(sizes)} sites")
    shares: list[list[str]] = [[] for _ in range(n_sites)]
    counts = [0] * n_sites
    for source in sorted(sizes, key=lambda source: (-sizes[source], source)):
        smallest = counts.index(min(counts))
        shares[smallest].append(source)
        counts[smallest] += sizes[source]
    return shares


def write_records(path: Path, records: list[dict[str, str]]) -> None:
    """Write a JSONL file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    beside.replace(path)


def prepare(n_sites: int, out: Path, data: Path | None) -> dict[str, object]:
    """Write ``site-1.jsonl`` to ``site-N.jsonl`` into ``out`` and say what is in them.

    Raises:
        PreparationError: MedQuAD is not in ``data``, or there are more sites than sources.
    """
    if data is None:
        raise PreparationError(
            "name the folder of MedQuAD with --data; examples/nih-answers/README.md says where to get it"
        )
    by_source = {source: records_of_source(source, read_source(data, source)) for source in SOURCES}
    out.mkdir(parents=True, exist_ok=True)
    sites: list[dict[str, object]] = []
    shares = share_out({source: len(records) for source, records in by_source.items()}, n_sites)
    for number, sources in enumerate(shares, start=1):
        records = sorted((one for source in sources for one in by_source[source]), key=lambda record: record["id"])
        path = out / f"site-{number}.jsonl"
        write_records(path, records)
        counted = [{"name": source, "records": len(by_source[source])} for source in sources]
        sites.append({"path": str(path), "records": len(records), "sources": counted})
    return {"source": "MedQuAD", "sites": sites}


def main() -> int:
    """Read the command line; 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that holds MedQuAD")
    parser.add_argument("--sites", type=int, default=9, help="how many datasets to make (default: 9)")
    parser.add_argument("--out", type=Path, required=True, help="the folder that they are written to")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    try:
        summary = prepare(arguments.sites, arguments.out, arguments.data)
    except (PreparationError, OSError, ET.ParseError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(summary))
        return 0
    for site in summary["sites"] if isinstance(summary["sites"], list) else []:
        print(f"{site['path']}: {site['records']} records")
        for source in site["sources"]:
            print(f"    {source['records']:6d}  {source['name']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
