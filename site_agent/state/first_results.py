"""The first result of each exchange that this site was shown: it is held to it, whatever else the coordinator shows.

A site draws which chunks of a sum it makes again from what M10 says. A coordinator that could show another M10 after it
saw the draw would have another draw, and so on until one misses its lie. Bodies are compared and not signatures: of one
body there are many valid signatures.
"""

from __future__ import annotations

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from fl_protocol.clock import Clock
from fl_protocol.spec.context import ExchangeContext
from site_agent.db.instants import instant_text
from site_agent.db.models import OneShotFlagRow
from site_agent.db.tables import table_of
from site_agent.db.tx import SiteDb
from site_agent.errors import RoundRefusedError
from site_agent.state.one_shot_flags import set_flag

_KIND = "M10/shown"
_FLAGS = table_of(OneShotFlagRow)
_FIND = select(_FLAGS.c.payload_sha256).where(_FLAGS.c.kind == _KIND, _FLAGS.c.context == bindparam("context"))


def hold_to_first_result(db: SiteDb, clock: Clock, context: ExchangeContext, *, body_sha256: str) -> None:
    """Note what M10 says, durably; or find that it said something else before.

    Args:
        db: this site's.
        clock: its time.
        context: the exchange.
        body_sha256: SHA-256 of M10's body.

    Raises:
        RoundRefusedError: ``result-changed``.
    """

    def write(session: Session) -> None:
        held = session.execute(_FIND, {"context": context.encode()}).scalar_one_or_none()
        if held is None:
            at = instant_text(clock.now())
            set_flag(session, _KIND, context.encode(), payload_sha256=body_sha256, at=at)
        elif held != body_sha256:
            message = "the coordinator showed another result of this exchange before"
            raise RoundRefusedError(
                message, reason="result-changed", run_id=context.run_id, round_index=context.round_index
            )

    db.run_tx("first-result", write)
