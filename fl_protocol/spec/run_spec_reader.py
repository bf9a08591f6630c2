"""How each section of a RunSpec is read: types, bounds and defaults. Knows no rule between two sections."""

from __future__ import annotations

from collections.abc import Mapping

from fl_protocol.ids import IdentifierInvalidError, Sha256Hex, SiteId, sha256_hex_from_text, site_id_from_text
from fl_protocol.spec.adapters import ADAPTER_READERS, AdapterDigests, AdapterKind, AdapterSpec
from fl_protocol.spec.attention_spec import read_attention
from fl_protocol.spec.faults import Reader
from fl_protocol.spec.metrics import Metric
from fl_protocol.spec.run_spec_parts import (
    AggregationSpec,
    AlgorithmName,
    BaseModelSpec,
    CohortSite,
    CohortSpec,
    CompressionKind,
    CompressionSpec,
    DataSpec,
    EvaluationSpec,
    LocalOptimizer,
    LocalRule,
    LocalSpec,
    Mechanism,
    PrivacySpec,
    Quantization,
    Schedule,
    SecureAggregationSpec,
    Suite,
    TrainerSpec,
)
from fl_protocol.spec.secagg_params import SMALLEST_COHORT
from fl_protocol.spec.server_spec import read_server
from fl_protocol.spec.tasks import TASK_READERS, TaskKind, TaskSpec

MAX_SITES = 200
"""The largest roster that the protocol's complete graph is meant for."""

_RING_BITS = 32
_MAX_SAFE_INTEGER = 2**53 - 1
"""The largest integer of RFC 8785."""

_MONTH_S = 31 * 86400
_NO_DIGEST = Sha256Hex("0" * 64)


def read_task(top: Reader) -> TaskSpec:
    """``task: {kind, ...}``: the other keys are the kind's own."""
    section = top.section("task")
    task = TASK_READERS[section.choice("kind", TaskKind)](section)
    section.finish()
    return task


def read_base_model(top: Reader) -> BaseModelSpec:
    """``base_model: {name, sha256, quantization=none}``."""
    section = top.section("base_model")
    model = BaseModelSpec(
        name=section.label("name"),
        sha256=section.digest("sha256") or _NO_DIGEST,
        quantization=section.choice("quantization", Quantization, default=Quantization.NONE),
    )
    section.finish()
    return model


def read_adapter(top: Reader) -> AdapterSpec:
    """``adapter: {kind, layout_sha256=null, initial_sha256=null, ...}``: the other keys are the kind's own."""
    section = top.section("adapter")
    digests = AdapterDigests(
        layout_sha256=section.digest("layout_sha256", is_required=False),
        initial_sha256=section.digest("initial_sha256", is_required=False),
    )
    adapter = ADAPTER_READERS[section.choice("kind", AdapterKind)](section, digests)
    section.finish()
    return adapter


def read_data(top: Reader) -> DataSpec:
    """``data: {dataset, min_records=1, min_patients=0}``."""
    section = top.section("data")
    data = DataSpec(
        dataset=section.label("dataset"),
        min_records=section.integer("min_records", low=1, high=_MAX_SAFE_INTEGER, default=1),
        min_patients=section.integer("min_patients", low=0, high=_MAX_SAFE_INTEGER, default=0),
    )
    section.finish()
    return data


def read_local(top: Reader) -> LocalSpec:
    """``local``: steps, batch_size, max_length and learning_rate are required, the rest has defaults.

    ``mu`` (0.01) is of the rule fedprox only, ``min_learning_rate`` (1e-6) of the schedule cosine-by-round only.
    """
    section = top.section("local")
    rule = section.choice("rule", LocalRule, default=LocalRule.PLAIN)
    schedule = section.choice("schedule", Schedule, default=Schedule.CONSTANT)
    local = LocalSpec(
        rule=rule,
        steps=section.integer("steps", low=1, high=1_000_000),
        batch_size=section.integer("batch_size", low=1, high=65_536),
        accumulation=section.integer("accumulation", low=1, high=65_536, default=1),
        max_length=section.integer("max_length", low=2, high=1 << 20),
        optimizer=section.choice("optimizer", LocalOptimizer, default=LocalOptimizer.ADAMW),
        learning_rate=section.number("learning_rate", above=0),
        weight_decay=section.number("weight_decay", low=0, default=0.0),
        schedule=schedule,
        warmup_steps=section.integer("warmup_steps", low=0, high=_MAX_SAFE_INTEGER, default=0),
        seed=section.integer("seed", low=0, high=_MAX_SAFE_INTEGER, default=0),
        mu=section.number("mu", low=0, high=1e6, default=0.01) if rule is LocalRule.FEDPROX else 0.01,
        min_learning_rate=section.number("min_learning_rate", above=0, default=1e-6)
        if schedule is Schedule.COSINE_BY_ROUND
        else 1e-6,
        gradient_checkpointing=section.switch("gradient_checkpointing") or False,
    )
    section.finish()
    return local


def read_aggregation(top: Reader) -> AggregationSpec:
    """``aggregation: {algorithm, server: {optimizer=fedavg}}``; a rule's parameters: ``read_server``.

    The algorithm fedmed has ``attention`` besides: ``read_attention``.
    """
    section = top.section("aggregation")
    algorithm = section.choice("algorithm", AlgorithmName)
    server = read_server(section.section("server", is_required=False))
    attention = None
    if algorithm is AlgorithmName.FEDMED:
        attention = read_attention(section.section("attention", is_required=False))
    section.finish()
    return AggregationSpec(algorithm=algorithm, server=server, attention=attention)


def read_cohort(top: Reader) -> CohortSpec:
    """``cohort: {sites, quorum, round_deadline_s=3600, phase_deadline_s=600, enough=null}``.

    Deadlines are by progress, and ``phase_deadline_s`` is the one to know: a site that is waited for is given up once
    it made none for so long. Progress is a message that arrived, bytes of an upload that were taken, a step of training
    that was reported. In training nobody is given up before ``round_deadline_s`` has passed, and past it only who is
    silent for ``phase_deadline_s``: slow is late, not dead. Once enough masked updates are in to be summed, time alone
    ends nothing that the missing sites may still complete. ``enough``, at least the quorum, closes training as soon as
    so many sites are ready.
    """
    section = top.section("cohort")
    cohort = CohortSpec(
        sites=_read_sites(section),
        quorum=section.integer("quorum", low=SMALLEST_COHORT, high=MAX_SITES),
        round_deadline_s=section.number("round_deadline_s", above=0, high=_MONTH_S, default=3600.0),
        phase_deadline_s=section.number("phase_deadline_s", above=0, high=_MONTH_S, default=600.0),
        enough=section.integer("enough", low=SMALLEST_COHORT, high=MAX_SITES) if section.has("enough") else None,
    )
    if cohort.enough is None:
        # Also marks the key as known where it is null.
        section.skip("enough")
    section.finish()
    return cohort


def read_secure_aggregation(top: Reader) -> SecureAggregationSpec:
    """``secure_aggregation: {required=true, suite=SA1, min_cohort=3, ring_bits=32, audit_window_s=86400}``."""
    section = top.section("secure_aggregation", is_required=False)
    section.is_true("required")
    secure = SecureAggregationSpec(
        suite=section.choice("suite", Suite, default=Suite.SA1),
        min_cohort=section.integer("min_cohort", low=SMALLEST_COHORT, high=MAX_SITES, default=SMALLEST_COHORT),
        ring_bits=section.only_integer("ring_bits", _RING_BITS),
        audit_window_s=section.integer("audit_window_s", low=0, high=_MONTH_S, default=86_400),
    )
    section.finish()
    return secure


def read_privacy(top: Reader) -> PrivacySpec:
    """``privacy: {clip_norm, weight_cap=10000, mechanism=none}``.

    clip_norm has no default: one that is too small silently shrinks what is learned, so it is chosen for the run.
    """
    section = top.section("privacy")
    privacy = PrivacySpec(
        clip_norm=section.number("clip_norm", low=1e-6, high=1e6),
        weight_cap=section.integer("weight_cap", low=1, high=10**9, default=10_000),
        mechanism=section.choice("mechanism", Mechanism, default=Mechanism.NONE),
    )
    section.finish()
    return privacy


def read_compression(top: Reader) -> CompressionSpec:
    """``compression: {kind=none}``."""
    section = top.section("compression", is_required=False)
    compression = CompressionSpec(kind=section.choice("kind", CompressionKind, default=CompressionKind.NONE))
    section.finish()
    return compression


def read_evaluation(top: Reader) -> EvaluationSpec:
    """``evaluation: {every=1, metrics=[loss], holdout_fraction=0.1, max_records=64}``."""
    section = top.section("evaluation", is_required=False)
    evaluation = EvaluationSpec(
        every=section.integer("every", low=1, high=_MAX_SAFE_INTEGER, default=1),
        metrics=_read_metrics(section),
        holdout_fraction=section.number("holdout_fraction", low=0, below=1, default=0.1),
        max_records=section.integer("max_records", low=1, high=1_000_000, default=64),
    )
    section.finish()
    return evaluation


def read_trainer(top: Reader) -> TrainerSpec:
    """``trainer: {image_sha256=null}``."""
    section = top.section("trainer", is_required=False)
    trainer = TrainerSpec(image_sha256=section.digest("image_sha256", is_required=False))
    section.finish()
    return trainer


def _read_metrics(section: Reader) -> tuple[Metric, ...]:
    if not section.has("metrics"):
        # Also marks the key as known where it is null.
        section.skip("metrics")
        return (Metric.LOSS,)
    metrics: list[Metric] = []
    for index, item in enumerate(section.items("metrics")):
        key = f"metrics[{index}]"
        if not isinstance(item, str) or item not in set(Metric):
            section.fault(key, f"{item!r} is not in this version (it has: {', '.join(Metric)})")
        elif item in metrics:
            section.fault(key, f"{item!r} is named twice")
        else:
            metrics.append(Metric(item))
    return tuple(metrics)


def _read_sites(section: Reader) -> tuple[CohortSite, ...]:
    """Each site as a name, or as ``{name, signing_key_sha256}``; no name and no key twice."""
    items = section.items("sites")
    if len(items) > MAX_SITES:
        section.fault("sites", f"must be at most {MAX_SITES} sites")
    sites: list[CohortSite] = []
    for index, item in enumerate(items):
        key = f"sites[{index}]"
        site = _read_site(section, key, item)
        if site is None:
            continue
        if any(other.name == site.name for other in sites):
            section.fault(key, f"site {site.name!r} is named twice")
        pin = site.signing_key_sha256
        if pin is not None and any(other.signing_key_sha256 == pin for other in sites):
            section.fault(key, "two sites have the same signing key")
        sites.append(site)
    return tuple(sites)


def _read_site(section: Reader, key: str, item: object) -> CohortSite | None:
    pin: Sha256Hex | None = None
    name: object = item
    if isinstance(item, Mapping):
        name = item.get("name")
        for other in item:
            if other not in ("name", "signing_key_sha256"):
                section.fault(f"{key}.{other}", "is not a known key")
        if item.get("signing_key_sha256") is not None:
            pin = _read_pin(section, f"{key}.signing_key_sha256", item["signing_key_sha256"])
    if not isinstance(name, str):
        section.fault(key, "must be a site's name, or a mapping with name and signing_key_sha256")
        return None
    try:
        return CohortSite(name=site_id_from_text(name), signing_key_sha256=pin)
    except IdentifierInvalidError as error:
        section.fault(key, error.message)
        return CohortSite(name=SiteId(name), signing_key_sha256=pin)


def _read_pin(section: Reader, key: str, value: object) -> Sha256Hex | None:
    try:
        return sha256_hex_from_text(value if isinstance(value, str) else "")
    except IdentifierInvalidError:
        section.fault(key, "must be a SHA-256 digest: 64 lower-case hexadecimal characters")
        return None
