"""The role itself: it holds one phase's state, calls that phase's function, and takes the next state in its place."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.ids import SiteId
from fl_protocol.secagg.entropy import Entropy
from fl_protocol.secagg.masking import RunAll, run_in_order
from fl_protocol.secagg.messages import AuditHeads, ExchangeResult
from fl_protocol.secagg.reading import PeerVerifier
from fl_protocol.secagg.reasons import PhaseError, SecAggRefusedError
from fl_protocol.secagg.sealing import HpkeSealer, Sealer
from fl_protocol.secagg.site_role import advertised, agreed, confirmed, finished, masked, revealed, shared
from fl_protocol.secagg.site_role.masked import MaskedUpload
from fl_protocol.secagg.site_role.phases import (
    Advertised,
    Agreed,
    Complained,
    Confirmed,
    Finished,
    Masked,
    Opened,
    Revealed,
    Shared,
    SitePhase,
    SiteState,
)
from fl_protocol.secagg.site_role.snapshot import phase_of, state_from_bytes, state_to_bytes
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.spec.secagg_params import SecAggParams

Phase = TypeVar("Phase")


class SiteRole:
    """One site in one exchange.

    Invariant: every step consumes its phase, so that a second call raises PhaseError; a refused message changes
    nothing, but for a bad dealer, after which the role is COMPLAINED. The caller persists ``snapshot()`` before it
    sends ``last_message``, and after a crash sends the same bytes again.
    """

    def __init__(self, state: SiteState, *, signer: Signer, entropy: Entropy, sealer: Sealer) -> None:
        """Take up a state; ``open`` and ``restore`` make one."""
        self._state: SiteState | None = state
        self._signer = signer
        self._entropy = entropy
        self._sealer = sealer

    def __repr__(self) -> str:
        """Its phase; never its state."""
        return f"SiteRole({'consumed' if self._state is None else self.phase.value})"

    @classmethod
    def open(  # noqa: PLR0913 - everything a site holds against the coordinator, each by its name
        cls,
        *,
        site_id: SiteId,
        context: ExchangeContext,
        manifest: SignedBody,
        coordinator_spki: bytes,
        layout: PayloadLayout,
        params: SecAggParams,
        peers: PeerVerifier,
        signer: Signer,
        entropy: Entropy,
        heads: AuditHeads | None = None,
        sealer: Sealer | None = None,
    ) -> SiteRole:
        """Enter an exchange.

        Args:
            site_id: this site.
            context: the exchange that this site expects; never one it was in before.
            manifest: M0, as received.
            coordinator_spki: the coordinator's signing key, pinned at enrolment.
            layout: of the payload, derived from the approved run.
            params: this site's own rules.
            peers: the pins that this site approved.
            signer: this site's signing key.
            entropy: fresh secrets come from here.
            heads: the audit logs as this site knows them.
            sealer: HPKE, unless ciphertexts are recorded ones.

        Raises:
            SecAggRefusedError: SIGNATURE_INVALID, MESSAGE_MALFORMED, CONTEXT_MISMATCH, LAYOUT_MISMATCH.
        """
        state = advertised.open_exchange(
            site_id=site_id,
            context=context,
            manifest=manifest,
            coordinator_spki=coordinator_spki,
            layout=layout,
            params=params,
            peers=peers,
            heads=heads or AuditHeads(),
        )
        return cls(state, signer=signer, entropy=entropy, sealer=sealer or HpkeSealer())

    @classmethod
    def restore(cls, snapshot: bytes, *, signer: Signer, entropy: Entropy, sealer: Sealer | None = None) -> SiteRole:
        """Continue where ``snapshot`` was taken.

        Raises:
            SnapshotInvalidError, PackedBytesInvalidError, SecAggRefusedError: the bytes are no intact snapshot.
        """
        return cls(state_from_bytes(snapshot), signer=signer, entropy=entropy, sealer=sealer or HpkeSealer())

    def snapshot(self) -> bytes:
        """The state as bytes. Safety: secret until REVEALED."""
        return state_to_bytes(self._current())

    @property
    def phase(self) -> SitePhase:
        """Where the role stands."""
        return phase_of(self._current())

    @property
    def last_message(self) -> bytes | None:
        """What this phase sends, M1, M3, M5, M7, M9 or the complaint; None where it sends nothing."""
        match self._current():
            case Advertised(m1=message) | Shared(m3=message) | Masked(m5=message):
                return message
            case Confirmed(m7=message) | Revealed(m9=message) | Complained(complaint=message):
                return message
            case _:
                return None

    @property
    def cohort(self) -> tuple[SiteId, ...]:
        """U1, once it is known; empty before."""
        match self._current():
            case Shared(cohort=cohort) | Complained(cohort=cohort):
                return cohort.sites
            case Agreed(sharers=sharers) | Masked(sharers=sharers):
                return sharers.cohort.sites
            case Confirmed(survivors=survivors) | Revealed(survivors=survivors) | Finished(survivors=survivors):
                return survivors.cohort.sites
            case _:
                return ()

    @property
    def sharers(self) -> tuple[SiteId, ...]:
        """U2, once it is known; empty before."""
        match self._current():
            case Agreed(sharers=sharers) | Masked(sharers=sharers):
                return sharers.sites
            case Confirmed(survivors=survivors) | Revealed(survivors=survivors) | Finished(survivors=survivors):
                return survivors.sharers.sites
            case _:
                return ()

    @property
    def survivors(self) -> tuple[SiteId, ...]:
        """U3, once this site signed it; empty before."""
        match self._current():
            case Confirmed(survivors=survivors) | Revealed(survivors=survivors) | Finished(survivors=survivors):
                return survivors.sites
            case _:
                return ()

    def advertise(self) -> bytes:
        """Make M1. Raises PhaseError."""
        state = self._in_phase(Opened)
        after = advertised.advertise(state, signer=self._signer, entropy=self._entropy)
        self._state = after
        return after.m1

    def share(self, m2: bytes) -> bytes:
        """Check M2, make M3. Raises PhaseError, SecAggRefusedError."""
        state = self._in_phase(Advertised)
        after = shared.share(state, m2, signer=self._signer, entropy=self._entropy, sealer=self._sealer)
        self._state = after
        return after.m3

    def accept_shares(self, m4: bytes, *, earlier_cohorts: Collection[Collection[SiteId]] = ()) -> None:
        """Check M4.

        Args:
            m4: the shares dealt to this site.
            earlier_cohorts: among whom the payload was masked before, in other attempts at this exchange. The caller
                notes ``cohort`` before it masks, and names every one it ever noted for the payload.

        Raises:
            PhaseError: not SHARED.
            SecAggRefusedError: refused; where it blames a dealer the role is COMPLAINED, and ``last_message`` says so.
        """
        state = self._in_phase(Shared)
        try:
            self._state = agreed.accept_shares(state, m4, sealer=self._sealer, earlier_cohorts=earlier_cohorts)
        except SecAggRefusedError as refusal:
            if refusal.blamed is not None:
                self._state = agreed.complain(state, refusal, signer=self._signer)
            raise

    def mask(self, vector: RingVector, *, n_ranges: int = 1, run_all: RunAll = run_in_order) -> MaskedUpload:
        """Mask the vector in place, once for ever; make M5.

        Args:
            vector: the encoded payload; its words are overwritten.
            n_ranges: into how many pieces of work to cut a big vector.
            run_all: runs them, perhaps in threads.

        Raises:
            PhaseError: not AGREED, or masked before.
            SecAggRefusedError: LAYOUT_MISMATCH.
        """
        state = self._in_phase(Agreed)
        masked.check_shape(state, vector)
        # Safety: consumed before the first word changes. If masking is interrupted, the masks are not used again.
        self._state = None
        after, upload = masked.mask(state, vector, signer=self._signer, n_ranges=n_ranges, run_all=run_all)
        self._state = after
        return upload

    def confirm(self, m6: bytes, *, required: Collection[SiteId] | None = None) -> bytes:
        """Check M6, make M7.

        Args:
            m6: the survivors' M5.
            required: the survivors of an earlier exchange of the same round; this one's must be the same.

        Raises:
            PhaseError: not MASKED, or confirmed before.
            SecAggRefusedError: refused.
        """
        state = self._in_phase(Masked)
        after = confirmed.confirm(state, m6, required=required, signer=self._signer)
        self._state = after
        return after.m7

    def reveal(self, m8: bytes) -> bytes:
        """Check M8, make M9. Raises PhaseError, SecAggRefusedError."""
        state = self._in_phase(Confirmed)
        after = revealed.reveal(state, m8, signer=self._signer)
        self._state = after
        return after.m9

    def finish(self, m10: bytes) -> ExchangeResult:
        """Check M10; a site whose own reveal was not needed may finish too. Raises PhaseError, SecAggRefusedError."""
        state = self._current()
        if not isinstance(state, Confirmed | Revealed):
            raise PhaseError("the role has no result to wait for", phase=self.phase.value)
        after, result = finished.finish(state, m10)
        self._state = after
        return result

    def _current(self) -> SiteState:
        if self._state is None:
            raise PhaseError("masking was interrupted; this exchange is over for the site", phase="consumed")
        return self._state

    def _in_phase(self, phase: type[Phase]) -> Phase:
        state = self._current()
        if not isinstance(state, phase):
            raise PhaseError("the role is in another phase", phase=self.phase.value, expected=phase.__name__.lower())
        return state
