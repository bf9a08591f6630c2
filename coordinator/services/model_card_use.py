"""What a release is and how it is used, by the kind of its adapter: one row a kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fl_protocol.spec.adapters import AdapterKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseUse:
    """How a card speaks of a kind.

    Attributes:
        noun: what it is, before "`BASE`, made across".
        relation: to the base model, as a hub has it.
        loaded_by: the library that loads it, as a hub has it.
        pipeline_tag: what it is for, as a hub has it.
        text: the section "Use"; ``{base}`` stands for the base model's name.
    """

    noun: str
    relation: str = "adapter"
    loaded_by: str = "peft"
    pipeline_tag: str = "text-generation"
    text: str


_PEFT = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("path/to/{base}")
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```"""

_TOWERS = """With Wardround's package (`pip install 'wardround[training]'`) and the base model's folder:

```python
from pathlib import Path

from site_agent.training.released_towers import load

model = load(Path("path/to/this/folder"), base=Path("path/to/{base}"))
for shares in model.classify([Path("path/to/image.png")]):
    print(shares)
```

`classify` gives for each image the share of each class of the run, by the run's own prompts. PNG, JPEG and DICOM files
are looked at as at the sites."""

_WHOLE = """With Wardround's package (`pip install 'wardround[training]'`) and the base model's folder:

```python
from pathlib import Path

from site_agent.training.released_timelines import load

model = load(Path("path/to/this/folder"), base=Path("path/to/{base}"))
first = model.vocabulary.codes[0]
for code, share in model.next_codes([first], k=5).items():
    print(code, share)
```

`next_codes` says what comes next on a timeline of codes, the likeliest first. For a folder that transformers loads by
itself, with the base's configuration and tokenizer:

```sh
python -m site_agent.training assemble-model --release path/to/this/folder --base-model path/to/{base} --out model
```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("model")
tokenizer = AutoTokenizer.from_pretrained("model")
```"""

_CODES = """The release says of each code of the list `{base}` whether it is published: 1 or 0. As a vocabulary:

```sh
python -m site_agent.training make-vocabulary --release path/to/this/folder --code-list path/to/{base} --out vocab.txt
```"""

USES: Mapping[AdapterKind, ReleaseUse] = {
    AdapterKind.FULL: ReleaseUse(
        noun="A whole model of the shape", relation="finetune", loaded_by="transformers", text=_WHOLE
    ),
    AdapterKind.PUBLISHED_CODES: ReleaseUse(noun="A vocabulary out of", loaded_by="numpy", text=_CODES),
    AdapterKind.ATTENTION: ReleaseUse(
        noun="An attention adapter behind the image tower of",
        loaded_by="wardround",
        pipeline_tag="zero-shot-image-classification",
        text=_TOWERS,
    ),
    AdapterKind.JOINT_PROJECTION: ReleaseUse(
        noun="A projection behind the image and text towers of",
        loaded_by="wardround",
        pipeline_tag="zero-shot-image-classification",
        text=_TOWERS,
    ),
}
"""Every kind that peft does not load."""


def use_of(kind: AdapterKind) -> ReleaseUse:
    """How a card speaks of a kind; what has no row of its own is loaded by peft."""
    noun = "A LoRA adapter for" if kind is AdapterKind.LORA else "An adapter for"
    return USES.get(kind, ReleaseUse(noun=noun, text=_PEFT))
