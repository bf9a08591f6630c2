"""What the trainer's commands print: answers and failures, as sentences or as one JSON document."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping


def print_document(document: Mapping[str, object], *, as_json: bool) -> None:
    """Print the answer of a command."""
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
        return
    for key, value in document.items():
        sys.stdout.write(f"{key}: {value}\n")


def print_error(document: Mapping[str, object], *, as_json: bool) -> None:
    """Print a failure: one JSON document on the standard output, or sentences on the standard error."""
    if as_json:
        sys.stdout.write(json.dumps({"error": document}) + "\n")
        return
    facts = document.get("facts")
    located = ", ".join(f"{key}={value}" for key, value in facts.items()) if isinstance(facts, Mapping) else ""
    sys.stderr.write(f"{document['code']}: {document['message']}{f' ({located})' if located else ''}\n")
    faults = document.get("faults")
    for fault in faults if isinstance(faults, list) else []:
        sys.stderr.write(f"  {fault['path']}: {fault['message']}\n")
    if document.get("advice"):
        sys.stderr.write(f"  {document['advice']}\n")
