"""A phase's state as bytes, for the site's journal, and back.

Public parts are kept as the messages they were read from and are read again, checks included; secret parts are what the
phase still needs. Safety: until REVEALED the bytes are secret, and belong in a file that is deleted with its key.
"""

from __future__ import annotations

from fl_protocol.errors import ProtocolError
from fl_protocol.ids import Sha256Hex, site_id_from_text
from fl_protocol.packing import pack, text_from_bytes, u32, u32_from_bytes, u64, u64_from_bytes, unpack
from fl_protocol.secagg.cohort import Cohort, Sharers, Survivors, read_cohort, read_sharers, read_survivors
from fl_protocol.secagg.messages import AuditHeads, SignedList
from fl_protocol.secagg.reading import PeerVerifier
from fl_protocol.secagg.shamir import element_from_bytes, element_to_bytes
from fl_protocol.secagg.site_role.phases import (
    Advertised,
    Agreed,
    Complained,
    Confirmed,
    Finished,
    HeldShare,
    Masked,
    Opened,
    OwnSecrets,
    Revealed,
    Shared,
    SitePhase,
    SiteState,
    Terms,
)
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.secagg_params import SecAggParams

_VERSION = b"WR/site-role/1"


class SnapshotInvalidError(ProtocolError):
    """Bytes that should be a snapshot of a role are not, or are one of another version."""

    code = "snapshot-invalid"


def phase_of(state: SiteState) -> SitePhase:
    """The phase whose state this is."""
    return SitePhase(type(state).__name__.lower())


def state_to_bytes(state: SiteState) -> bytes:
    """``pack(version, phase, terms, field, ...)``."""
    return pack(_VERSION, phase_of(state).encode(), _terms_to_bytes(state.terms), *_fields(state))


def state_from_bytes(data: bytes) -> SiteState:
    """Read what ``state_to_bytes`` wrote.

    Raises:
        SnapshotInvalidError: the bytes are no snapshot of this version.
        SecAggRefusedError: a message in it does not pass the checks that it passed before.
    """
    version, phase, terms_bytes, *fields = unpack(data)
    if version != _VERSION:
        raise SnapshotInvalidError("the snapshot has another version", version=version[:40].hex())
    return _state(SitePhase(text_from_bytes(phase)), _terms_from_bytes(terms_bytes), fields)


def _fields(state: SiteState) -> tuple[bytes, ...]:  # noqa: PLR0911 - one return a phase
    match state:
        case Opened():
            return ()
        case Advertised():
            return (_secrets_to_bytes(state.secrets), state.transport_private, state.m1)
        case Shared():
            own = _held_to_bytes((state.own_share,))
            secrets = _secrets_to_bytes(state.secrets)
            return (secrets, state.transport_private, _list(state.cohort.entries), own, state.m3)
        case Agreed():
            return (_secrets_to_bytes(state.secrets), *_sharers_to_fields(state.sharers), _held_to_bytes(state.held))
        case Masked():
            return (*_sharers_to_fields(state.sharers), _held_to_bytes(state.held), state.m5)
        case Confirmed():
            return (*_survivors_to_fields(state.survivors), _held_to_bytes(state.held), state.m7)
        case Revealed():
            return (*_survivors_to_fields(state.survivors), state.m9)
        case Finished():
            return (*_survivors_to_fields(state.survivors), state.m10)
        case Complained():
            return (_list(state.cohort.entries), state.complaint)


def _state(phase: SitePhase, terms: Terms, fields: list[bytes]) -> SiteState:  # noqa: PLR0911 - one return a phase
    match phase, fields:
        case SitePhase.OPENED, []:
            return Opened(terms=terms)
        case SitePhase.ADVERTISED, [secrets, transport, m1]:
            return Advertised(terms=terms, secrets=_secrets(secrets), transport_private=transport, m1=m1)
        case SitePhase.SHARED, [secrets, transport, m2, own, m3]:
            return Shared(
                terms=terms,
                secrets=_secrets(secrets),
                transport_private=transport,
                cohort=_cohort(terms, m2),
                own_share=_held(own)[0],
                m3=m3,
            )
        case SitePhase.AGREED, [secrets, m2, headers, held]:
            sharers = _sharers(terms, m2, headers)
            return Agreed(terms=terms, secrets=_secrets(secrets), sharers=sharers, held=_held(held))
        case SitePhase.MASKED, [m2, headers, held, m5]:
            return Masked(terms=terms, sharers=_sharers(terms, m2, headers), held=_held(held), m5=m5)
        case SitePhase.CONFIRMED, [m2, headers, m6, held, m7]:
            return Confirmed(terms=terms, survivors=_survivors(terms, m2, headers, m6), held=_held(held), m7=m7)
        case SitePhase.REVEALED, [m2, headers, m6, m9]:
            return Revealed(terms=terms, survivors=_survivors(terms, m2, headers, m6), m9=m9)
        case SitePhase.FINISHED, [m2, headers, m6, m10]:
            return Finished(terms=terms, survivors=_survivors(terms, m2, headers, m6), m10=m10)
        case SitePhase.COMPLAINED, [m2, complaint]:
            return Complained(terms=terms, cohort=_cohort(terms, m2), complaint=complaint)
        case _:
            raise SnapshotInvalidError("the snapshot has another number of fields", phase=phase, n_fields=len(fields))


def _terms_to_bytes(terms: Terms) -> bytes:
    return pack(
        terms.site_id.encode(),
        terms.context.encode(),
        terms.manifest.encode(),
        terms.coordinator_spki,
        u64(terms.n_ring32),
        u64(terms.n_ring64),
        u32(terms.max_sites),
        pack(
            terms.params.suite.encode(),
            u32(terms.params.min_cohort),
            u32(terms.params.assumed_colluders),
            u32(terms.params.chunk_bytes),
        ),
        pack(*(pack(site.encode(), pin.encode()) for site, pin in sorted(terms.peers.approved.items()))),
        pack(u64(terms.heads.size), terms.heads.head, u64(terms.heads.seen_size), terms.heads.seen_head),
    )


def _terms_from_bytes(data: bytes) -> Terms:
    site, context, manifest, spki, n_ring32, n_ring64, max_sites, params, peers, heads = unpack(data, 10)
    suite, min_cohort, assumed_colluders, chunk_bytes = unpack(params, 4)
    size, head, seen_size, seen_head = unpack(heads, 4)
    pins = [unpack(pin, 2) for pin in unpack(peers)]
    return Terms(
        site_id=site_id_from_text(text_from_bytes(site)),
        context=ExchangeContext.decode(context),
        manifest=SignedBody.decode(manifest),
        coordinator_spki=spki,
        n_ring32=u64_from_bytes(n_ring32),
        n_ring64=u64_from_bytes(n_ring64),
        max_sites=u32_from_bytes(max_sites),
        params=SecAggParams(
            suite=text_from_bytes(suite),
            min_cohort=u32_from_bytes(min_cohort),
            assumed_colluders=u32_from_bytes(assumed_colluders),
            chunk_bytes=u32_from_bytes(chunk_bytes),
        ),
        peers=PeerVerifier(
            approved={site_id_from_text(text_from_bytes(name)): Sha256Hex(pin.decode()) for name, pin in pins}
        ),
        heads=AuditHeads(
            size=u64_from_bytes(size), head=head, seen_size=u64_from_bytes(seen_size), seen_head=seen_head
        ),
    )


def _secrets_to_bytes(secrets: OwnSecrets) -> bytes:
    return pack(element_to_bytes(secrets.rho), element_to_bytes(secrets.b))


def _secrets(data: bytes) -> OwnSecrets:
    rho, b = unpack(data, 2)
    return OwnSecrets(rho=element_from_bytes(rho), b=element_from_bytes(b))


def _held_to_bytes(held: tuple[HeldShare, ...]) -> bytes:
    return pack(*(pack(share.dealer.encode(), share.rho_share, share.b_share) for share in held))


def _held(data: bytes) -> tuple[HeldShare, ...]:
    return tuple(
        HeldShare(dealer=site_id_from_text(text_from_bytes(dealer)), rho_share=rho_share, b_share=b_share)
        for dealer, rho_share, b_share in (unpack(share, 3) for share in unpack(data))
    )


def _list(entries: tuple[SignedBody, ...]) -> bytes:
    return SignedList(entries=entries).encode()


def _sharers_to_fields(sharers: Sharers) -> tuple[bytes, bytes]:
    return _list(sharers.cohort.entries), _list(sharers.entries)


def _survivors_to_fields(survivors: Survivors) -> tuple[bytes, bytes, bytes]:
    return (*_sharers_to_fields(survivors.sharers), _list(survivors.entries))


def _cohort(terms: Terms, m2: bytes) -> Cohort:
    return read_cohort(SignedList.decode(m2).entries, h_manifest=terms.h_manifest, peers=terms.peers)


def _sharers(terms: Terms, m2: bytes, headers: bytes) -> Sharers:
    return read_sharers(SignedList.decode(headers).entries, _cohort(terms, m2))


def _survivors(terms: Terms, m2: bytes, headers: bytes, m6: bytes) -> Survivors:
    return read_survivors(SignedList.decode(m6).entries, _sharers(terms, m2, headers), n_bytes=terms.n_bytes)
