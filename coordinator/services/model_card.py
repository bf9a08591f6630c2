"""The model card of a release, in the Hugging Face form: what it is, how it was made, what it does not promise.

Every figure is the RunSpec's or a published sum. What no sum can give is said to be missing, with the reason, and never
estimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import yaml

from coordinator.db.states import ApprovalDecision
from coordinator.services.model_card_use import use_of
from coordinator.services.release_lineage import Lineage, LineageRound
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.algorithm import Publishes
from fl_protocol.spec.metrics import WORSE_BY, Metric
from fl_protocol.spec.round_spec import RoundKind

LICENCE_NAME = "that-of-the-base-model-and-of-the-sites"
_OF_WORSE = (
    f"Worse is a mean loss on the site's own held-out records that is larger by more than 1/{1 / WORSE_BY:.0f} nat a "
    "unit; by how much, the count does not say, and a group of patients within a site it does not see."
)
_OF_WORSE_UNASKED = "Nor did the run ask at how many sites it does worse than before."
_MARKS = frozenset("\\`|<>[]*_#")

_TAGS = ("federated-learning", "secure-aggregation", "wardround")


def model_card(lineage: Lineage, *, release_id: str, created_at: datetime) -> str:
    """README.md of the folder: front matter that a hub reads, then sentences that people read."""
    sections = (
        _front_matter(lineage),
        _introduction(lineage, release_id=release_id, created_at=created_at),
        _use(lineage),
        _data(lineage),
        _training(lineage),
        _evaluation(lineage),
        _privacy(lineage),
        _limits(lineage),
        _licence(lineage),
        _evidence(),
    )
    return "\n\n".join(sections) + "\n"


def _front_matter(lineage: Lineage) -> str:
    spec = lineage.spec
    # No ``datasets``: a hub would link the hospitals' names of their data to whatever is called so there.
    document: dict[str, object] = {
        "license": "other",
        "license_name": LICENCE_NAME,
        "license_link": "README.md",
        "base_model": spec.base_model.name,
        "base_model_relation": use_of(spec.adapter.kind).relation,
        "library_name": use_of(spec.adapter.kind).loaded_by,
        "pipeline_tag": use_of(spec.adapter.kind).pipeline_tag,
        "tags": [spec.adapter.kind.value, *_TAGS, spec.task.kind.value],
    }
    return f"---\n{yaml.safe_dump(document, sort_keys=False, allow_unicode=True)}---"


def _introduction(lineage: Lineage, *, release_id: str, created_at: datetime) -> str:
    spec = lineage.spec
    parents = ", ".join(f"`{parent.release_id}`" for parent in lineage.parents)
    return (
        f"# {_plain(spec.name)}\n\n"
        f"{use_of(spec.adapter.kind).noun} `{spec.base_model.name}`, made across {len(spec.cohort.sites)} hospitals by "
        "Wardround. No record left a hospital; the coordinator learned sums over sites and nothing else.\n\n"
        f"- Purpose: {_plain(spec.purpose)}\n"
        f"- Release `{release_id}` of run `{lineage.run_id}`, made {created_at:%Y-%m-%d %H:%M} UTC\n"
        f"- RunSpec SHA-256 `{lineage.run_spec_sha256}`\n"
        f"- Base model digest `{spec.base_model.sha256}`\n"
        f"- Made from release: {parents or 'none'}"
    )


def _use(lineage: Lineage) -> str:
    spec = lineage.spec
    return "## Use\n\n" + use_of(spec.adapter.kind).text.replace("{base}", spec.base_model.name)


def _data(lineage: Lineage) -> str:
    spec = lineage.spec
    told = sum(one.dataset_sha256 is not None for one in lineage.approvals)
    withdrawn = sum(one.decision == ApprovalDecision.WITHDRAWN.value for one in lineage.approvals)
    rows = (
        ("Dataset at each site", f"`{spec.data.dataset}`: registered, approved and kept by each hospital itself"),
        ("Sites that gave their word", f"{len(lineage.approvals)} of {len(spec.cohort.sites)}"),
        ("Of these, withdrew before the end", str(withdrawn)),
        ("Records, all sites together", _records(_trained(lineage), spec.privacy.weight_cap)),
        ("At least, at each site", f"{spec.data.min_records} records, {spec.data.min_patients} patients"),
        ("Records and patients of one site", "not available: no figure of one site leaves it"),
        ("Digests of the datasets", f"told by {told} of {len(lineage.approvals)} sites; see `manifest.json`"),
    )
    return f"## Data\n\n{_table(rows)}\n\nWhat a dataset holds is described at its hospital, and not known here."


def _training(lineage: Lineage) -> str:
    spec, trained = lineage.spec, _trained(lineage)
    counted = ", ".join(str(len(one.counted_sites)) for one in trained)
    rows = (
        ("Task", f"{spec.task.kind.value}, loss over {spec.task.loss_unit}"),
        ("Adapter", spec.adapter.summary),
        ("Rounds", f"{len(trained)}, sites counted in each: {counted}"),
        ("Updates that were clipped, in each", ", ".join(_figure(one.report, "n_clipped") for one in trained)),
        (
            "Local training",
            f"{spec.local.steps} steps of {spec.local.batch_size} records, {spec.local.summary}",
        ),
        (
            "Aggregation",
            f"{spec.aggregation.summary}, weighted by records, at most {spec.privacy.weight_cap} a site",
        ),
        ("Parameters", f"{lineage.layout.n_parameters:,}"),
        ("Trainer image SHA-256", spec.trainer.image_sha256 or "none named"),
    )
    return f"## Training\n\n{_table(rows)}"


def _evaluation(lineage: Lineage) -> str:
    last = lineage.rounds[-1].report if lineage.rounds else {}
    n_records = last.get("n_eval_records")
    held_out = "held-out records" if n_records is None else f"{n_records} held-out records"
    rounds = "\n".join(
        f"| {one.round_index} | {_figure(one.report, 'eval_loss')} | {_figure(one.report, 'train_loss')} |"
        for one in lineage.rounds
    )
    return (
        f"## Evaluation\n\nMean loss over {lineage.spec.task.loss_unit} of {held_out} at the sites, "
        "itself a secure sum.\n\n"
        "| | loss |\n|---|---|\n"
        f"| before (initial adapter) | {_loss(lineage.eval_loss_before)} |\n"
        f"| after (this adapter) | {_loss(lineage.eval_loss_after)} |\n"
        f"| sites at which this adapter does worse than the initial one | {_sites_made_worse(lineage)} |\n\n"
        "Why the worst site's own loss is not here: a loss leaves its site only inside a sum over at least "
        f"{lineage.spec.secure_aggregation.min_cohort} sites, and the largest of several figures is no sum. Nobody but "
        "each hospital knows how this adapter does there: the mean above may hide a site at which it does badly. "
        f"{_OF_WORSE if Metric.SITES_MADE_WORSE in lineage.spec.evaluation.metrics else _OF_WORSE_UNASKED} "
        "Evaluate it on records of your own before you use it.\n\n"
        "A round that evaluates does so with the adapter that it began from:\n\n"
        f"| round | loss, held out | loss, training |\n|---|---|---|\n{rounds}"
    )


def _sites_made_worse(lineage: Lineage) -> str:
    """At how many sites, of those that the last evaluation compared: a secure sum of yes and no."""
    if Metric.SITES_MADE_WORSE not in lineage.spec.evaluation.metrics:
        return f"not asked for (`{Metric.SITES_MADE_WORSE.value}` is not among the run's `evaluation.metrics`)"
    found = lineage.rounds[-1].report.get("metrics") if lineage.rounds else None
    figures = found if isinstance(found, Mapping) else {}
    worse, compared = (figures.get(name.value) for name in (Metric.SITES_MADE_WORSE, Metric.SITES_COMPARED))
    if not isinstance(worse, int | float) or not isinstance(compared, int | float):
        return "not evaluated"
    n_counted = len(lineage.rounds[-1].counted_sites)
    left = n_counted - int(compared)
    without = f"; {left} of the {n_counted} sites in the sum had no held-out record" if left else ""
    return f"{int(worse)} of {int(compared)}{without}"


def _privacy(lineage: Lineage) -> str:
    spec = lineage.spec
    return (
        "## Privacy\n\n"
        f"Updates, weights and losses left each site only through secure aggregation "
        f"({spec.secure_aggregation.suite.value}, at least {spec.secure_aggregation.min_cohort} sites in every sum). "
        f"Each site's update was clipped to an L2 norm of {spec.privacy.clip_norm:g}.\n\n"
        "No noise was added: there is **no differential-privacy guarantee**, and the privacy ledger in `evidence/` is "
        "empty. Secure aggregation hides one site's update from everybody; it does not limit what the sum, or this "
        "adapter, tells about the records of all sites together." + _of_the_fold(lineage)
    )


def _of_the_fold(lineage: Lineage) -> str:
    """What has to be said where more is summed than published."""
    if ALGORITHMS[lineage.spec.aggregation.algorithm].publishes is not Publishes.FOLD:
        return ""
    return (
        "\n\nOnly what the fold made of the sum is published here. The coordinator, and each site that checked the "
        "sum, saw the sum itself; the coordinator keeps it until the audit window of its round has closed."
    )


def _limits(lineage: Lineage) -> str:
    smallest = min((len(one.counted_sites) for one in lineage.rounds), default=0)
    return (
        "## Limits\n\n"
        "- Not a medical device. It has been evaluated by a loss only; its answers were not reviewed by clinicians.\n"
        "- Not tested for fairness: no figure by site, sex, age or origin exists, since none leaves a site.\n"
        "- It inherits the limits and the licence of its base model.\n"
        "- A fine-tuned model can repeat what it was trained on. Decide on its disclosure as on that of the records.\n"
        f"- The smallest sum was over {smallest} sites: all but one of them, colluding, learn the last one's update.\n"
        "- A release can be withdrawn, and a hospital can withdraw a dataset that went into it. This folder cannot "
        "know: ask `wardround releases show` before each new use."
    )


def _licence(lineage: Lineage) -> str:
    return (
        "## Licence\n\n"
        f"That of `{lineage.spec.base_model.name}` as far as it reaches, and what the hospitals agreed for their "
        "data. The coordinator knows neither text; whoever passes this folder on states them."
    )


def _evidence() -> str:
    return (
        "## Evidence\n\n"
        "`manifest.json` names the digest of every file here and the run's lineage; `manifest.sig` signs its exact "
        "bytes. `evidence/` holds the RunSpec, the sites' signed approvals, the signed manifests, results and receipts "
        "of every round, the privacy ledger, a signed head of the audit log, and who released this with which meaning. "
        "`wardround releases verify DIR` checks all of it, without a connection."
    )


def _trained(lineage: Lineage) -> list[LineageRound]:
    return [one for one in lineage.rounds if one.kind == RoundKind.TRAIN.value]


def _records(trained: Sequence[LineageRound], weight_cap: int) -> str:
    found = [one.report.get("n_records") for one in trained]
    counts = [count for count in found if isinstance(count, int)]
    if not counts:
        return "not available"
    told = f"{counts[-1]:,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}, by round"
    return f"{told} (a secure sum; a site with more than {weight_cap:,} counts as {weight_cap:,})"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _figure(report: Mapping[str, object], key: str) -> str:
    value = report.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _loss(loss: float | None) -> str:
    return "not evaluated" if loss is None else f"{loss:.4f}"


def _plain(text: str) -> str:
    """A text of the RunSpec on one line, so that it makes no table, no heading, no link and no tag of its own."""
    return "".join(f"\\{letter}" if letter in _MARKS else letter for letter in " ".join(text.split()))
