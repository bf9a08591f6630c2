"""Coordinator and sites in one process: an exchange from M0 to M10 over byte strings; sites may vanish anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from fl_protocol.codec.chunks import chunk_root
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.ids import RunId, Sha256Hex, SiteId
from fl_protocol.secagg import coordinator_role
from fl_protocol.secagg.coordinator_role import ExchangeOpen, SurvivingCohort
from fl_protocol.secagg.entropy import Entropy
from fl_protocol.secagg.masking import add_into, apply_masks
from fl_protocol.secagg.messages import ExchangeResult, StatementKind
from fl_protocol.secagg.reading import PeerVerifier
from fl_protocol.secagg.sealing import Sealer
from fl_protocol.secagg.site_role import SiteRole
from fl_protocol.signing.keys import EcdsaSigner, spki_fingerprint
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.spec.payload_layout import PayloadLayout, Segment, SegmentKind
from fl_protocol.spec.round_spec import NO_DIGEST, RoundKind, RoundManifest
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.testing.entropy import SeededEntropy, seeded_signer

RUN_ID = RunId("run-" + "a" * 26)


class LastSent(IntEnum):
    """The last message that a site sends before it vanishes."""

    NOTHING = 0
    M1 = 1
    M3 = 3
    M5 = 5
    M7 = 7
    M9 = 9


@dataclass(slots=True, kw_only=True)
class Conversation:
    """Every message of one exchange, by sender, exactly as it travelled."""

    m1s: dict[SiteId, bytes] = field(default_factory=dict)
    m2: bytes = b""
    m3s: dict[SiteId, bytes] = field(default_factory=dict)
    m4s: dict[SiteId, bytes] = field(default_factory=dict)
    m5s: dict[SiteId, bytes] = field(default_factory=dict)
    uploads: dict[SiteId, RingVector] = field(default_factory=dict)
    m6: bytes = b""
    m7s: dict[SiteId, bytes] = field(default_factory=dict)
    m8: bytes = b""
    m9s: dict[SiteId, bytes] = field(default_factory=dict)
    m10: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeOutcome:
    """A sum, over whom, and all that was said."""

    total: RingVector
    survivors: tuple[SiteId, ...]
    result: ExchangeResult
    conversation: Conversation


def small_layout(*, n_ring32: int = 5, n_ring64: int = 2, max_sites: int = 12) -> PayloadLayout:
    """A layout with one update segment and, unless ``n_ring64`` is 0, one count segment."""
    update = Segment(name="update", kind=SegmentKind.UPDATE, length=n_ring32, bound=1.0)
    if not n_ring64:
        return PayloadLayout(segments=(update,), max_sites=max_sites)
    count = Segment(name="count", kind=SegmentKind.COUNT, length=n_ring64, bound=1000.0)
    return PayloadLayout(segments=(update, count), max_sites=max_sites)


class Federation:
    """Sites and a coordinator with fixed keys. Every exchange of it has fresh, seeded secrets."""

    def __init__(
        self,
        site_ids: tuple[SiteId, ...],
        layout: PayloadLayout,
        *,
        seed: str = "federation",
        params: SecAggParams | None = None,
        params_of: Mapping[SiteId, SecAggParams] | None = None,
        sealer_of: Callable[[SiteId], Sealer | None] = lambda _: None,
    ) -> None:
        """Give everybody keys; ``params_of`` overrides the rules of single sites."""
        self.site_ids = site_ids
        self.layout = layout
        self.seed = seed
        self.params = params or SecAggParams(chunk_bytes=16)
        self._params_of = dict(params_of or {})
        self._sealer_of = sealer_of
        self.coordinator = seeded_signer(f"{seed}/coordinator")
        self.signers: dict[SiteId, EcdsaSigner] = {site: seeded_signer(f"{seed}/{site}") for site in site_ids}
        self.roster: dict[SiteId, Sha256Hex] = {
            site: spki_fingerprint(signer.spki_der) for site, signer in self.signers.items()
        }

    def manifest(self, *, round_index: int = 0, round_attempt: int = 0) -> SignedBody:
        """M0 of a round, signed by the coordinator."""
        body = RoundManifest(
            run_id=RUN_ID,
            round_index=round_index,
            round_attempt=round_attempt,
            kind=RoundKind.TRAIN,
            suite=self.params.suite,
            run_spec_sha256=Sha256Hex("11" * 32),
            public_state_sha256=Sha256Hex("22" * 32),
            public_state_version=round_index,
            previous_result_sha256=NO_DIGEST,
            payload_layout_sha256=self.layout.digest(),
            min_cohort=self.params.min_cohort,
            audit_window_s=86_400,
            opened_at="2026-01-02T03:04:05+00:00",
            audit_size=0,
            audit_head=NO_DIGEST,
        )
        return sign_body(self.coordinator, StatementKind.M0.value, body.encode())

    def open_exchange(self, *, round_index: int = 0, exchange_attempt: int = 0) -> ExchangeOpen:
        """The coordinator's side of a new exchange."""
        return ExchangeOpen(
            manifest=self.manifest(round_index=round_index),
            exchange_index=0,
            exchange_attempt=exchange_attempt,
            layout=self.layout,
            params=self.params,
            roster=self.roster,
        )

    def open_role(self, site: SiteId, opened: ExchangeOpen, *, entropy: Entropy | None = None) -> SiteRole:
        """One site's side of it."""
        context = RoundManifest.decode(opened.manifest.body).exchange(opened.exchange_index, opened.exchange_attempt)
        return SiteRole.open(
            site_id=site,
            context=context,
            manifest=opened.manifest,
            coordinator_spki=self.coordinator.spki_der,
            layout=self.layout,
            params=self._params_of.get(site, self.params),
            peers=PeerVerifier(approved=self.roster),
            signer=self.signers[site],
            entropy=entropy or SeededEntropy(f"{self.seed}/{site}/{context.encode().hex()}"),
            sealer=self._sealer_of(site),
        )

    def restart(self, site: SiteId, role: SiteRole) -> SiteRole:
        """The role after a crash, from its snapshot; its entropy is fresh."""
        entropy = SeededEntropy(f"{self.seed}/{site}/restarted")
        return SiteRole.restore(
            role.snapshot(), signer=self.signers[site], entropy=entropy, sealer=self._sealer_of(site)
        )

    def exchange(
        self,
        vectors: Mapping[SiteId, RingVector],
        *,
        last_sent: Mapping[SiteId, LastSent] | None = None,
        is_restarting: bool = False,
        opened: ExchangeOpen | None = None,
    ) -> ExchangeOutcome:
        """Run one exchange.

        Args:
            vectors: each site's encoded payload; they are copied, and stay as they are.
            last_sent: who vanishes after which message; the others never do.
            is_restarting: every site crashes and restores itself after every step.
            opened: the exchange; a new one otherwise.

        Raises:
            SecAggRefusedError: a side refused; too few sites were left.
        """
        opened = opened or self.open_exchange()
        roles = {site: self.open_role(site, opened) for site in sorted(vectors)}
        last = {site: (last_sent or {}).get(site, LastSent.M9) for site in roles}
        run = _Run(federation=self, roles=roles, last=last, is_restarting=is_restarting)
        surviving = run.collect(opened, vectors)
        return run.unmask(surviving)


@dataclass(slots=True, kw_only=True)
class _Run:
    """One exchange under way."""

    federation: Federation
    roles: dict[SiteId, SiteRole]
    last: Mapping[SiteId, LastSent]
    is_restarting: bool
    said: Conversation = field(default_factory=Conversation)

    def collect(self, opened: ExchangeOpen, vectors: Mapping[SiteId, RingVector]) -> SurvivingCohort:
        """M1 to M6."""
        said = self.said
        said.m1s = self._each(LastSent.M1, self.roles, lambda role, _: role.advertise())
        for site, message in said.m1s.items():
            coordinator_role.check_m1(opened, message, sender=site)
        keyed = coordinator_role.freeze_cohort(opened, said.m1s)
        said.m2 = coordinator_role.make_m2(keyed)
        said.m3s = self._each(LastSent.M3, said.m1s, lambda role, _: role.share(said.m2))
        shared = coordinator_role.freeze_sharers(keyed, said.m3s)
        said.m4s = {site: coordinator_role.make_m4(shared, site) for site in shared.sites}

        def upload(role: SiteRole, site: SiteId) -> bytes:
            role.accept_shares(said.m4s[site])
            role_now = self._restart(site, role)
            upload = role_now.mask(vectors[site].copy())
            said.uploads[site] = upload.vector
            return upload.header

        said.m5s = self._each(LastSent.M5, said.m3s, upload)
        for site, message in said.m5s.items():
            header = coordinator_role.check_m5(shared, message, sender=site)
            chunks = said.uploads[site].iter_chunks(opened.params.chunk_bytes)
            assert header.chunk_root == chunk_root(chunks), "the upload is not what its header says"
        surviving = coordinator_role.freeze_survivors(shared, said.m5s)
        said.m6 = coordinator_role.make_m6(surviving)
        return surviving

    def unmask(self, surviving: SurvivingCohort) -> ExchangeOutcome:
        """M7 to M10."""
        said = self.said
        said.m7s = self._each(LastSent.M7, said.m5s, lambda role, _: role.confirm(said.m6))
        for site, message in said.m7s.items():
            coordinator_role.check_m7(surviving, message, sender=site)
        said.m8 = coordinator_role.make_m8(surviving, said.m7s)
        said.m9s = self._each(LastSent.M9, said.m7s, lambda role, _: role.reveal(said.m8))
        terms = coordinator_role.recover_mask_terms(surviving, said.m9s)
        layout = self.federation.layout
        total = RingVector.zeros(layout.n_ring32, layout.n_ring64)
        for site in surviving.sites:
            add_into(total, said.uploads[site])
        apply_masks(total, terms)
        said.m10 = coordinator_role.make_m10(
            surviving,
            self.federation.coordinator,
            result_sha256=total.sha256(),
            transcript_root=coordinator_role.transcript_root(surviving, said.m7s, said.m9s),
        )
        results = [self.roles[site].finish(said.m10) for site in said.m9s]
        return ExchangeOutcome(total=total, survivors=surviving.sites, result=results[0], conversation=said)

    def _each(
        self, step: LastSent, sites: Mapping[SiteId, object], act: Callable[[SiteRole, SiteId], bytes]
    ) -> dict[SiteId, bytes]:
        """Let every site that is still there take a step; what they send."""
        sent: dict[SiteId, bytes] = {}
        for site in sorted(sites):
            if self.last[site] >= step:
                sent[site] = act(self.roles[site], site)
                role = self._restart(site, self.roles[site])
                assert role.last_message == sent[site], "a restored role sends other bytes"
        return sent

    def _restart(self, site: SiteId, role: SiteRole) -> SiteRole:
        if self.is_restarting:
            self.roles[site] = self.federation.restart(site, role)
        return self.roles[site]
