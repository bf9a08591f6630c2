"""``task.classes``: what can be seen or spoken of, each with the prompts that stand for it. Public, like the RunSpec.

The prompts are the one thing that sites with images and sites with texts have in common, so they are part of what
every site approves: no site's words are in them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fl_protocol.spec.faults import Reader

MAX_CLASSES = 64
MAX_PROMPTS = 64
MAX_TERMS = 2000
_LONGEST_PROMPT = 300
_LONGEST_TERM = 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.:/()+-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageClass:
    """One class.

    Attributes:
        name: what a dataset's labels call it.
        prompts: sentences that stand for it, at least one.
        terms: words that mention it in a text; may be empty.
    """

    name: str
    prompts: tuple[str, ...]
    terms: tuple[str, ...] = ()

    def to_document(self) -> dict[str, object]:
        """As JSON values; ``terms`` only where there are any."""
        document: dict[str, object] = {"name": self.name, "prompts": list(self.prompts)}
        return {**document, "terms": list(self.terms)} if self.terms else document


def read_classes(section: Reader, *, have_terms: bool) -> tuple[ImageClass, ...]:
    """``classes: [{name, prompts: [...], terms: [...]}]``: two at least, none twice; ``terms`` if the kind has them."""
    classes: list[ImageClass] = []
    for index, item in enumerate(section.sections("classes", most=MAX_CLASSES)):
        name = item.text("name", longest=100)
        prompts = item.texts("prompts", most=MAX_PROMPTS, longest=_LONGEST_PROMPT)
        terms = item.texts("terms", most=MAX_TERMS, longest=_LONGEST_TERM) if have_terms and item.has("terms") else ()
        if have_terms:
            item.skip("terms")
        item.finish()
        if _NAME.fullmatch(name) is None and name != "-":
            section.fault(f"classes[{index}].name", "must be letters, digits, spaces and the marks _ . : / ( ) + -")
        if any(other.name == name for other in classes):
            section.fault(f"classes[{index}].name", f"class {name!r} is named twice")
        classes.append(ImageClass(name=name, prompts=prompts or ("-",), terms=terms))
    if len(classes) == 1:
        section.fault("classes", "must be at least 2: with one class there is nothing to tell apart")
    return tuple(classes)
