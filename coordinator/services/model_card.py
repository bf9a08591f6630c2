"""The model card of a release, in the Hugging Face form: what it is, how it was made, what it does not promise."""

from __future__ import annotations

from datetime import datetime

import yaml

from coordinator.services.release_lineage import Lineage


def model_card(lineage: Lineage, *, release_id: str, created_at: datetime) -> str:
    """README.md of the folder: front matter that a hub reads, then sentences that people read."""
    sections = (
        _front_matter(lineage),
        _introduction(lineage, release_id=release_id, created_at=created_at),
        _use(lineage),
        _training(lineage),
        _evaluation(lineage),
        _privacy(lineage),
        _limits(),
        _evidence(),
    )
    return "\n\n".join(sections) + "\n"


def _front_matter(lineage: Lineage) -> str:
    spec = lineage.spec
    document: dict[str, object] = {
        "base_model": spec.base_model.name,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "federated-learning", "secure-aggregation", "wardround"],
    }
    return f"---\n{yaml.safe_dump(document, sort_keys=False, allow_unicode=True)}---"


def _introduction(lineage: Lineage, *, release_id: str, created_at: datetime) -> str:
    spec = lineage.spec
    return (
        f"# {spec.name}\n\n"
        f"A LoRA adapter for `{spec.base_model.name}`, trained across {len(spec.cohort.sites)} hospitals by Wardround. "
        "No record left a hospital; the coordinator learned sums over sites and nothing else.\n\n"
        f"- Purpose: {spec.purpose}\n"
        f"- Release `{release_id}` of run `{lineage.run_id}`, made {created_at:%Y-%m-%d %H:%M} UTC\n"
        f"- RunSpec SHA-256 `{lineage.run_spec_sha256}`\n"
        f"- Base model digest `{spec.base_model.sha256}`"
    )


def _use(lineage: Lineage) -> str:
    return (
        "## Use\n\n"
        "```python\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("path/to/{lineage.spec.base_model.name}")\n'
        'model = PeftModel.from_pretrained(base, "path/to/this/folder")\n'
        "```"
    )


def _training(lineage: Lineage) -> str:
    spec = lineage.spec
    train_rounds = [one for one in lineage.rounds if one.kind == "train"]
    counted = ", ".join(str(len(one.counted_sites)) for one in train_rounds)
    rows = (
        ("Task", f"{spec.task.kind.value}, loss over completion tokens"),
        ("Adapter", f"LoRA, rank {spec.adapter.rank}, alpha {spec.adapter.alpha:g}, {', '.join(spec.adapter.targets)}"),
        ("Rounds", f"{len(train_rounds)}, sites counted in each: {counted}"),
        (
            "Local training",
            f"{spec.local.steps} steps of {spec.local.batch_size} records, learning rate {spec.local.learning_rate:g}",
        ),
        (
            "Aggregation",
            f"{spec.aggregation.algorithm.value}, weighted by records, at most {spec.privacy.weight_cap} a site",
        ),
        ("Parameters", f"{lineage.layout.n_parameters:,}"),
    )
    return "## Training\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _evaluation(lineage: Lineage) -> str:
    last = lineage.rounds[-1].report if lineage.rounds else {}
    n_records = last.get("n_eval_records")
    held_out = "held-out records" if n_records is None else f"{n_records} held-out records"
    return (
        f"## Evaluation\n\nMean loss a completion token on {held_out} at the sites, itself a secure sum.\n\n"
        "| | loss |\n|---|---|\n"
        f"| before (initial adapter) | {_figure(lineage.eval_loss_before)} |\n"
        f"| after (this adapter) | {_figure(lineage.eval_loss_after)} |"
    )


def _privacy(lineage: Lineage) -> str:
    spec = lineage.spec
    return (
        "## Privacy\n\n"
        f"Updates, weights and losses left each site only through secure aggregation "
        f"({spec.secure_aggregation.suite.value}, at least {spec.secure_aggregation.min_cohort} sites in every sum). "
        f"Each site's update was clipped to an L2 norm of {spec.privacy.clip_norm:g}.\n\n"
        "No noise was added: there is **no differential-privacy guarantee**. Secure aggregation hides one site's "
        "update from everybody; it does not limit what the sum, or this adapter, tells about the records of all "
        "sites together."
    )


def _limits() -> str:
    return (
        "## Limits\n\n"
        "- Not a medical device. It has been evaluated by a loss only; its answers were not reviewed by clinicians.\n"
        "- It inherits the limits and the licence of its base model.\n"
        "- A fine-tuned model can repeat what it was trained on. Decide on its disclosure as on that of the records.\n"
        "- With three sites, two that collude learn the third's update."
    )


def _evidence() -> str:
    return (
        "## Evidence\n\n"
        "`manifest.json` names the digest of every file here and the run's lineage; `manifest.sig` signs its exact "
        "bytes. `evidence/` holds the RunSpec, the sites' signed approvals, the signed results and receipts of every "
        "round and a signed head of the audit log. `wardround releases verify DIR` checks all of it."
    )


def _figure(loss: float | None) -> str:
    return "not evaluated" if loss is None else f"{loss:.4f}"
