"""Thresholded counts: how many patients have each code of a public list, summed, and which codes enough have.

With n_ic the patients of site i who have code c, s the run's ``site_minimum`` and W its ``weight_cap``:

    m_ic = min(n_ic, W) if n_ic >= s else 0          h_ic = 1 if m_ic > 0 else 0           (each site, before masking)
    M_c = sum_i m_ic      H_c = sum_i h_ic           published_c = 1 if M_c >= threshold and H_c >= min_sites else 0

Who learns what. Everybody learns ``published``: the public state, the release and every report hold that and a few
totals. Whoever sees the sum, which is the coordinator and each site of the cohort, also learns M_c and H_c. What keeps
them from a rare code is ``site_minimum`` alone: a count below it is zero before it is masked. Where it is the threshold
or more, as it is where the run says nothing, M_c = H_c = 0 for each code that fewer than ``threshold`` patients have,
since no site has as many. Where it is less, the sum shows rarer codes, and a site's policy has to permit that
(docs/decisions/0068).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.codec.errors import ImplausibleSumError
from fl_protocol.codec.sums import SumValues
from fl_protocol.folds.algorithm import FoldResult, Publishes, RawPayloadInvalidError, RoundReport
from fl_protocol.folds.public_state import PublicState
from fl_protocol.folds.round_sums import check_raw, counted_sites, summed_weight, weight_of
from fl_protocol.spec.payload_layout import PayloadLayout, Segment, SegmentKind
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.tasks.concept_vocabulary import ConceptVocabulary
from fl_protocol.tensors.adapter_layout import AdapterLayout
from fl_protocol.tensors.code_list_layout import PUBLISHED_TENSOR

PUBLISHED_CODES = "published_codes"
"""The one figure of a report: how many codes are published."""

_RAW = "code_patients"
_PATIENTS, _SITES, _WEIGHT, _EVALUATED = "code_patients", "code_sites", "weight", "eval_records"


class ThresholdedCounts:
    """The algorithm ``thresholded-counts``.

    Raw segment of a training round, as the trainer writes it: code_patients int64 (n,), n the codes of the list. An
    evaluation round has nothing to evaluate: eval_records int64 (1,), 0.
    """

    publishes = Publishes.FOLD

    @property
    def name(self) -> str:
        """``thresholded-counts``."""
        return "thresholded-counts"

    def segments(self, spec: RunSpec, layout: AdapterLayout, kind: RoundKind) -> PayloadLayout:
        """The payload: two counts a code, of which there are as many as the layout has elements."""
        n_codes = layout.n_parameters
        segments = (
            (_count(_EVALUATED, 1, 1),)
            if kind is RoundKind.EVALUATE
            else (
                _count(_PATIENTS, n_codes, spec.privacy.weight_cap),
                _count(_SITES, n_codes, 1),
                _count(_WEIGHT, 1, spec.privacy.weight_cap),
            )
        )
        return PayloadLayout(segments=segments, max_sites=len(spec.cohort.sites))

    def weigh(
        self,
        raw: Mapping[str, NDArray[Any]],
        *,
        n_records: int,
        spec: RunSpec,
        layout: AdapterLayout,
        kind: RoundKind,
    ) -> dict[str, NDArray[Any]]:
        """Leave out what is below ``site_minimum``, cap the rest, and say which codes are left. See ``Algorithm``."""
        is_evaluation = kind is RoundKind.EVALUATE
        wanted, length = (_EVALUATED, 1) if is_evaluation else (_RAW, layout.n_parameters)
        check_raw(raw, {wanted: (np.dtype(np.int64), length)})
        array = raw[wanted]
        if array.size and int(array.min()) < 0:
            raise RawPayloadInvalidError("a count is negative", segment=wanted)
        if is_evaluation:
            return {_EVALUATED: array}
        weight = weight_of(n_records, spec)
        cap = spec.privacy.weight_cap
        patients = np.where(array >= _task(spec).site_minimum, np.minimum(array, cap), 0)
        return {
            _PATIENTS: patients.astype(np.int64),
            _SITES: (patients > 0).astype(np.int64),
            _WEIGHT: np.array([weight], dtype=np.int64),
        }

    def fold(
        self,
        sums: Mapping[str, SumValues],
        state: PublicState,
        *,
        spec: RunSpec,
        layout: AdapterLayout,
        kind: RoundKind,
        n_sites: int | None = None,
    ) -> FoldResult:
        """Which codes are published. Integers are compared: bit for bit the same everywhere. See ``Algorithm``."""
        segments = self.segments(spec, layout, kind)
        counted_sites(sums, state, segments=segments, layout=layout, n_sites=n_sites)
        if kind is RoundKind.EVALUATE:
            return FoldResult(state=state, report=_report(0, n_published=int(state.adapter[PUBLISHED_TENSOR].sum())))
        task = _task(spec)
        patients, sites = np.asarray(sums[_PATIENTS][:]), np.asarray(sums[_SITES][:])
        _check_counts(
            patients, sites, minimum=min(task.site_minimum, spec.privacy.weight_cap), cap=spec.privacy.weight_cap
        )
        published = ((patients >= task.threshold) & (sites >= task.min_sites)).astype(np.float32)
        weight = summed_weight(sums, n_sites)
        return FoldResult(
            state=PublicState(version=state.version + 1, adapter={PUBLISHED_TENSOR: published}, server=state.server),
            report=_report(weight, n_published=int(published.sum())),
        )


def _report(n_records: int, *, n_published: int) -> RoundReport:
    return RoundReport(
        train_loss=None,
        eval_loss=None,
        n_records=n_records,
        n_eval_records=0,
        n_clipped=0,
        update_norm=0.0,
        metrics={PUBLISHED_CODES: float(n_published)},
    )


def _count(name: str, length: int, bound: int) -> Segment:
    return Segment(name=name, kind=SegmentKind.COUNT, length=length, bound=float(bound))


def _task(spec: RunSpec) -> ConceptVocabulary:
    # Safety: the reader of a RunSpec pairs this algorithm with this task.
    assert isinstance(spec.task, ConceptVocabulary), "a RunSpec pairs them"
    return spec.task


def _check_counts(patients: NDArray[Any], sites: NDArray[Any], *, minimum: int, cap: int) -> None:
    """Each site that has a code has ``minimum`` to ``cap`` patients of it."""
    if bool((patients < sites * minimum).any()) or bool((patients > sites * cap).any()):
        raise ImplausibleSumError("patients and sites of a code do not fit each other", segment=_PATIENTS)
