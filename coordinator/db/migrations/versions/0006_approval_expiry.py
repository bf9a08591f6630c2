"""When a site's approval of a run ends. Expand only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from coordinator.db.types import UtcDateTime


revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand: one nullable column. A statement without an end holds until it is taken back, as before."""
    op.add_column('approvals', sa.Column('expires_at', UtcDateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Back: the statement's bytes still say when it ends; the program before does not read them for it."""
    op.drop_column('approvals', 'expires_at')
