"""All pages of ``docs/studies/`` as they should be: what stands there, with the block that follows from each table."""

from __future__ import annotations

from pathlib import Path

from benchmarks.studies.page import block_of, page_with_block
from benchmarks.studies.table_file import read_table
from wardround.demo.workspace import Checkout
from wardround.studies.catalogue import Study, all_studies


def table_path(checkout: Checkout, study: Study) -> Path:
    """Where a study's table lies."""
    return checkout.root / "docs" / "studies" / f"{study.name}.json"


def study_pages(checkout: Checkout) -> dict[Path, str]:
    """Every page of a study whose table is filled here, as it should be: its present text with the block of its table.

    Raises:
        StudyTableError: a table cannot be read or shown.
    """
    pages: dict[Path, str] = {}
    for study in all_studies(checkout.examples_dir):
        if study.description.table.command is not None:
            continue
        table = read_table(table_path(checkout, study), study=study.name)
        if table.cells:
            path = table_path(checkout, study).with_suffix(".md")
            text = path.read_text(encoding="utf-8") if path.is_file() else f"# Study: {study.name}\n"
            pages[path] = page_with_block(text, block_of(table, study.description.metric))
    return pages
