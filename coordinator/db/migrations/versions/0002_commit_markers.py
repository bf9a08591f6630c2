"""Markers that say whether a transaction was committed whose COMMIT was not answered"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from coordinator.db.types import UtcDateTime


revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand."""
    op.create_table('commit_markers',
    sa.Column('marker', sa.String(length=32), nullable=False),
    sa.Column('at', UtcDateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('marker', name=op.f('pk_commit_markers'))
    )
    op.create_index('ix_commit_markers_at', 'commit_markers', ['at'])


def downgrade() -> None:
    """Contract."""
    op.drop_index('ix_commit_markers_at', table_name='commit_markers')
    op.drop_table('commit_markers')
