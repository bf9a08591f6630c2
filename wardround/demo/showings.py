"""What a person is shown of what was learned, by the kind of task: one held-out record, asked before and after.

A task that has nothing to show in words has no row here; its figures are shown as every task's are. The demonstration
owns its sites and may look into their data; nobody else could.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wardround.demo.held_out import first_held_out
from wardround.demo.processes import Supervisor
from wardround.demo.summary import Generation
from wardround.demo.workspace import Programs
from wardround.documents import documents_of, section_of, text_of
from wardround.errors import DemoFailedError

NEW_TOKENS = 40
_GENERATE_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A verified release, and what it was made with and from. ``data_file``: one site's dataset."""

    run_spec: Mapping[str, object]
    base_model_dir: Path
    release_dir: Path
    data_file: Path
    supervisor: Supervisor
    programs: Programs


def ask_before_and_after(released: Released) -> Generation:
    """One question to the base model, then to the released adapter on it: one process, so that torch loads once."""
    record = first_held_out(released.data_file, holdout_fraction=holdout_fraction_of(released.run_spec))
    adapters = ("--adapter", "none", "--adapter", str(released.release_dir))
    asked = ("--prompt", record.prompt, "--max-new-tokens", str(NEW_TOKENS), "--json")
    base = ("--base-model", str(released.base_model_dir))
    arguments = (*released.programs.trainer, "generate", *base, *adapters, *asked)
    answer = released.supervisor.run_json("generate", arguments, timeout_s=_GENERATE_TIMEOUT_S)
    texts = [text_of(generation, "text") for generation in documents_of(answer, "generations")]
    if len(texts) != 2:
        raise DemoFailedError("the trainer did not answer once for each of two adapters", log="generate")
    return Generation(prompt=record.prompt, reference=record.completion, before=texts[0], after=texts[1])


def holdout_fraction_of(run_spec: Mapping[str, object]) -> float:
    """The share of each site's records that no site trains on.

    Raises:
        DemoFailedError: the specification says no number.
    """
    fraction = section_of(run_spec, "evaluation").get("holdout_fraction", 0.1)
    if isinstance(fraction, bool) or not isinstance(fraction, int | float):
        raise DemoFailedError("evaluation.holdout_fraction is no number")
    return float(fraction)


SHOWINGS: Mapping[str, Callable[[Released], Generation]] = {"instruction-tuning": ask_before_and_after}
"""By the kind of the run's task."""
