"""What a release is and how it is used, by the kind of its adapter: one row a kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fl_protocol.spec.adapters import AdapterKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseUse:
    """How a card speaks of a kind.

    Attributes:
        noun: what it is, before "for `BASE`".
        relation: to the base model, as a hub has it.
        library: that loads it, as a hub has it.
        text: the section "Use"; ``{base}`` stands for the base model's name.
    """

    noun: str
    relation: str
    library: str
    text: str


_PEFT = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("path/to/{base}")
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```"""

_WHOLE = """The weights here are a whole model's. A folder that transformers loads also needs the base's configuration,
tokenizer and vocabulary; the trainer puts them together:

```sh
python -m site_agent.training assemble-model --release path/to/this/folder --base-model path/to/{base} --out model
```

```python
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("model")
tokenizer = AutoTokenizer.from_pretrained("model")
codes = Path("model/vocab.txt").read_text(encoding="utf-8").splitlines()

timeline = "\\n".join(["<SEP>", codes[0]])
scores = model(tokenizer(timeline, return_tensors="pt").input_ids).logits[0, -1, -len(codes) :]
next_codes = [codes[place] for place in scores.topk(min(5, len(codes))).indices]
```"""

_CODES = """The release says of each code of the list `{base}` whether it is published: 1 or 0. As a vocabulary:

```sh
python -m site_agent.training make-vocabulary --release path/to/this/folder --code-list path/to/{base} --out vocab.txt
```"""

USES: Mapping[AdapterKind, ReleaseUse] = {
    AdapterKind.FULL: ReleaseUse(
        noun="A whole model of the shape", relation="finetune", library="transformers", text=_WHOLE
    ),
    AdapterKind.PUBLISHED_CODES: ReleaseUse(
        noun="A vocabulary out of", relation="adapter", library="numpy", text=_CODES
    ),
}
"""Every kind that peft does not load."""


def use_of(kind: AdapterKind) -> ReleaseUse:
    """How a card speaks of a kind; what has no row of its own is loaded by peft."""
    noun = "A LoRA adapter for" if kind is AdapterKind.LORA else "An adapter for"
    return USES.get(kind, ReleaseUse(noun=noun, relation="adapter", library="peft", text=_PEFT))
