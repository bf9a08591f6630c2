"""M0, the manifest of a round: what a coordinator states, signed, before anybody trains.

Knows the fields and their bytes; who checks which of them against what is the business of the site.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from fl_protocol.errors import ProtocolError
from fl_protocol.ids import RunId, Sha256Hex, run_id_from_text, sha256_hex_from_text
from fl_protocol.packing import pack, text_from_bytes, u32, u32_from_bytes, u64, u64_from_bytes, unpack
from fl_protocol.spec.context import ExchangeContext, check_counter

NO_DIGEST = Sha256Hex("00" * 32)
"""Stands where there is no earlier result and no log yet."""

_N_FIELDS = 15
_DIGESTS = (
    "run_spec_sha256",
    "public_state_sha256",
    "previous_result_sha256",
    "payload_layout_sha256",
    "audit_head",
)


class RoundManifestInvalidError(ProtocolError):
    """The body of M0 is not a well-formed manifest."""

    code = "round-manifest-invalid"


class RoundKind(StrEnum):
    """What the sites of a round are asked to do."""

    TRAIN = "train"
    EVALUATE = "evaluate"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundManifest:
    """The body of M0. Invariant: equal bytes mean equal statements, and the reverse.

    Attributes:
        run_id: the run.
        round_index: the round, from 0.
        round_attempt: rises with every new start of the same round.
        kind: train or evaluate.
        suite: the suite of secure aggregation.
        run_spec_sha256: the approved RunSpec.
        public_state_sha256: the public state (adapter and server state) that the sites start from.
        public_state_version: its version; the adapter vN after N rounds.
        previous_result_sha256: the exchange result that led to that state; NO_DIGEST in the first round.
        payload_layout_sha256: the layout of the payload that is summed.
        min_cohort: the smallest cohort the coordinator will try; a site's own rule stands above it.
        audit_window_s: how long masked uploads and shares are kept, in seconds.
        opened_at: ISO 8601 with its offset, UTC.
        audit_size: rows of the coordinator's audit log when it opened the round.
        audit_head: root of that log.
    """

    run_id: RunId
    round_index: int
    round_attempt: int
    kind: RoundKind
    suite: str
    run_spec_sha256: Sha256Hex
    public_state_sha256: Sha256Hex
    public_state_version: int
    previous_result_sha256: Sha256Hex
    payload_layout_sha256: Sha256Hex
    min_cohort: int
    audit_window_s: int
    opened_at: str
    audit_size: int
    audit_head: Sha256Hex

    def __post_init__(self) -> None:
        run_id_from_text(self.run_id)
        for name in ("round_index", "round_attempt", "public_state_version", "min_cohort", "audit_window_s"):
            check_counter(name, getattr(self, name))
        for name in _DIGESTS:
            sha256_hex_from_text(getattr(self, name))
        if not 0 <= self.audit_size < 1 << 64:
            raise RoundManifestInvalidError("a log size is 0 .. 2**64 - 1", audit_size=self.audit_size)
        try:
            offset = datetime.fromisoformat(self.opened_at).utcoffset()
        except ValueError as error:
            raise RoundManifestInvalidError("opened_at is no ISO 8601 instant") from error
        if offset != timedelta(0):
            raise RoundManifestInvalidError("opened_at is an instant in UTC", opened_at=self.opened_at)

    def encode(self) -> bytes:
        """The fields in declared order by ``pack``: texts in UTF-8, counters u32, the log size u64, digests raw."""
        return pack(
            self.run_id.encode(),
            u32(self.round_index),
            u32(self.round_attempt),
            self.kind.encode(),
            self.suite.encode(),
            bytes.fromhex(self.run_spec_sha256),
            bytes.fromhex(self.public_state_sha256),
            u32(self.public_state_version),
            bytes.fromhex(self.previous_result_sha256),
            bytes.fromhex(self.payload_layout_sha256),
            u32(self.min_cohort),
            u32(self.audit_window_s),
            self.opened_at.encode(),
            u64(self.audit_size),
            bytes.fromhex(self.audit_head),
        )

    @classmethod
    def decode(cls, data: bytes) -> RoundManifest:
        """Read what ``encode`` wrote.

        Raises:
            PackedBytesInvalidError: the bytes are not the packed fields.
            IdentifierInvalidError: a name or a digest is none.
            RoundManifestInvalidError: a value is not admitted.
        """
        field = unpack(data, _N_FIELDS)
        kind = text_from_bytes(field[3])
        if kind not in set(RoundKind):
            raise RoundManifestInvalidError("a round trains or evaluates", kind=kind[:80])
        return cls(
            run_id=run_id_from_text(text_from_bytes(field[0])),
            round_index=u32_from_bytes(field[1]),
            round_attempt=u32_from_bytes(field[2]),
            kind=RoundKind(kind),
            suite=text_from_bytes(field[4]),
            run_spec_sha256=Sha256Hex(field[5].hex()),
            public_state_sha256=Sha256Hex(field[6].hex()),
            public_state_version=u32_from_bytes(field[7]),
            previous_result_sha256=Sha256Hex(field[8].hex()),
            payload_layout_sha256=Sha256Hex(field[9].hex()),
            min_cohort=u32_from_bytes(field[10]),
            audit_window_s=u32_from_bytes(field[11]),
            opened_at=text_from_bytes(field[12]),
            audit_size=u64_from_bytes(field[13]),
            audit_head=Sha256Hex(field[14].hex()),
        )

    def exchange(self, exchange_index: int, exchange_attempt: int) -> ExchangeContext:
        """The context of one exchange of this round."""
        return ExchangeContext(
            run_id=self.run_id,
            round_index=self.round_index,
            round_attempt=self.round_attempt,
            exchange_index=exchange_index,
            exchange_attempt=exchange_attempt,
        )
