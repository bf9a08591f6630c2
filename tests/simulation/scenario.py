"""The run that is simulated: its specification, and payloads in which every site is one digit.

Invariant: in the sum's own integers, the update of site ``i`` is 1 at coordinate ``i`` and nothing elsewhere, its
weight is ``BASE**i`` and so are its evaluation's tokens: whoever is counted twice shows as a digit 2, whoever is lost
as a 0. The training's loss is another number in each attempt at a round, so that a payload of another shows too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fl_protocol.codec.fixed_point import quantisation_step
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import RunId, SiteId
from fl_protocol.signing.keys import spki_fingerprint
from fl_protocol.spec.payload_layout import PayloadLayout, SegmentKind
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec, bind_adapter, parse_run_spec, resolve_run_spec
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.testing.entropy import seeded_signer
from fl_protocol.testing.run_specs import run_spec_document

RUN_ID = RunId("run-" + "b" * 26)
NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")
BASE = 4
AUDIT_WINDOW_S = 86_400
ROUND_DEADLINE_S = 600.0
PHASE_DEADLINE_S = 120.0
LAYOUT = AdapterLayout(
    kind="lora",
    tensors=(
        TensorSpec(name="m.lora_A.weight", shape=(2, 6)),
        TensorSpec(name="m.lora_B.weight", shape=(6, 2)),
    ),
    peft_config={"peft_type": "LORA", "r": 2},
)
_LOSS_RESOLUTION = 2.0**-16


@dataclass(frozen=True)
class Scenario:
    """Who takes part, and for how long.

    Attributes:
        enough: as in the RunSpec.
        poll_wait_s: how long a site waits at the coordinator for an answer; 0 where it acts only when it is told to.
        is_played_out: whether, after the last operation, everything is mended and lives until the run is over.
    """

    n_sites: int
    rounds: int
    quorum: int = 3
    enough: int | None = None
    poll_wait_s: float = 0.0
    is_played_out: bool = True
    is_witnessed: bool = True
    """Whether the sites ask for proofs of the coordinator's log. Off, the defences behind that one stand alone."""

    @property
    def names(self) -> tuple[SiteId, ...]:
        return tuple(SiteId(name) for name in NAMES[: self.n_sites])

    @cached_property
    def initial(self) -> PublicState:
        # Zeros, so that the smallest update changes it: an adapter that stays as it was is the same evaluation again.
        return PublicState(version=0, adapter=LAYOUT.unflatten(np.zeros(LAYOUT.n_parameters, np.float32)))

    @cached_property
    def spec(self) -> RunSpec:
        changes = {
            "cohort.sites": list(self.names),
            "cohort.quorum": self.quorum,
            "cohort.enough": self.enough,
            "cohort.round_deadline_s": ROUND_DEADLINE_S,
            "cohort.phase_deadline_s": PHASE_DEADLINE_S,
            "rounds": self.rounds,
            "adapter.rank": 2,
            "adapter.targets": ["m"],
            "data.min_records": 1,
            "local.steps": 8,
            "local.max_length": 512,
            "privacy.clip_norm": 1.0,
            "privacy.weight_cap": BASE**self.n_sites,
            "secure_aggregation.audit_window_s": AUDIT_WINDOW_S,
        }
        pins = {name: spki_fingerprint(seeded_signer(name).spki_der) for name in self.names}
        resolved = resolve_run_spec(parse_run_spec(run_spec_document(changes)), pins)
        return bind_adapter(resolved, layout_sha256=LAYOUT.digest(), initial_sha256=self.initial.digest())

    def payload_layout(self, kind: RoundKind) -> PayloadLayout:
        algorithm = ALGORITHMS[self.spec.aggregation.algorithm.value]
        return algorithm.segments(self.spec, LAYOUT, kind)

    def kind(self, round_index: int) -> RoundKind:
        return RoundKind.EVALUATE if round_index == self.rounds else RoundKind.TRAIN

    def digit(self, site: str) -> int:
        return int(BASE ** self.names.index(SiteId(site)))

    def raw_payload(self, site: str, round_index: int, round_attempt: int) -> dict[str, np.ndarray]:
        """What the trainer of a site writes, before it is weighed."""
        kind = self.kind(round_index)
        raw = {
            "eval_loss_sum": np.array([_loss_units(site, round_index, 0) * _LOSS_RESOLUTION]),
            "eval_tokens": np.array([self.digit(site)], np.int64),
            "eval_records": np.array([1], np.int64),
        }
        if kind is RoundKind.EVALUATE:
            return raw
        update = np.zeros(LAYOUT.n_parameters, np.float32)
        step = quantisation_step(self.payload_layout(kind), "adapter_update")
        # It is multiplied by weight / cap, both powers of two: what is left is one step of the fixed point.
        update[self.names.index(SiteId(site))] = step * self.spec.privacy.weight_cap / self.digit(site)
        units = _loss_units(site, round_index, 1 + round_attempt)
        return {
            **raw,
            "adapter_update": update,
            "train_loss_sum": np.array([units * _LOSS_RESOLUTION]),
            "train_tokens": np.array([self.digit(site)], np.int64),
        }

    def expected_sum(self, sites: Collection[str], round_index: int, round_attempt: int) -> Mapping[str, Sequence[int]]:
        """The integers of a sum over exactly these sites, each once; by segment."""
        n, digits = len(sites), sum(self.digit(site) for site in sites)
        expected: dict[str, list[int]] = {
            "eval_loss_sum": [sum(_loss_units(site, round_index, 0) for site in sites)],
            "eval_tokens": [digits],
            "eval_records": [n],
        }
        if self.kind(round_index) is RoundKind.TRAIN:
            indicator = [0] * LAYOUT.n_parameters
            for site in sites:
                indicator[self.names.index(SiteId(site))] = 1
            expected |= {
                "adapter_update": indicator,
                "weight": [digits],
                "was_clipped": [0],
                "train_tokens": [digits],
                "train_loss_sum": [sum(_loss_units(site, round_index, 1 + round_attempt) for site in sites)],
            }
        return expected

    def read_sum(self, data: bytes, round_index: int) -> Mapping[str, Sequence[int]]:
        """The integers of a sum as it is stored: a section of 32-bit words, then one of 64-bit words, little-endian."""
        layout = self.payload_layout(self.kind(round_index))
        n32 = sum(segment.length for segment in layout.segments if segment.kind is SegmentKind.UPDATE)
        narrow = np.frombuffer(data[: 4 * n32], "<i4").astype(int).tolist()
        wide = np.frombuffer(data[4 * n32 :], "<i8").astype(int).tolist()
        found: dict[str, list[int]] = {}
        for segment in layout.segments:
            section = narrow if segment.kind is SegmentKind.UPDATE else wide
            found[segment.name], section[:] = section[: segment.length], section[segment.length :]
        assert not narrow, "the 32-bit section is used up"
        assert not wide, "the 64-bit section is used up"
        return found


def _loss_units(site: str, round_index: int, salt: int) -> int:
    """Some number that is this site's in this attempt at this round and nobody else's."""
    digest = hashlib.sha256(f"{site}/{round_index}/{salt}".encode()).digest()
    return 1 + int.from_bytes(digest[:3], "big")
