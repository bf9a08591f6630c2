from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from fl_protocol.audit.chain import AuditRow, LogTip, append_event
from fl_protocol.audit.checkpoint import Checkpoint, sign_checkpoint
from fl_protocol.audit.events import AuditEvent, AuditKind
from fl_protocol.signing.signed import SignedBody
from fl_protocol.testing.entropy import seeded_signer

START = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)


def make_event(number: int) -> AuditEvent:
    return AuditEvent(
        kind=AuditKind.UPLOAD_ACCEPTED,
        at=START + timedelta(seconds=number),
        actor="site:charite",
        facts={"round_index": number, "digest": f"{number:064x}", "late": False, "note": None},
    )


class Log:
    """A log of n rows with a checkpoint at each of some sizes."""

    def __init__(
        self, n: int, checkpoints: tuple[int, ...], *, change: Callable[[int], AuditEvent] = make_event
    ) -> None:
        self.signer = seeded_signer("auditor")
        self.rows: list[AuditRow] = []
        self.signed: list[SignedBody] = []
        tip = LogTip()
        self.heads = [tip.head()]
        for number in range(n):
            tip, row = append_event(tip, change(number))
            self.rows.append(row)
            self.heads.append(tip.head())
        self.tip = tip
        for size in checkpoints:
            self.signed.append(self.sign(size))

    def sign(self, size: int, *, origin: str = "coordinator", root: str | None = None) -> SignedBody:
        head = self.heads[size].root if root is None else root
        checkpoint = Checkpoint(origin=origin, size=size, head=head, at=START)  # type: ignore[arg-type]
        return sign_checkpoint(self.signer, checkpoint)


@pytest.fixture
def make_log() -> type[Log]:
    return Log
