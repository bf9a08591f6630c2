"""What the coordinator holds of each site's own audit log. Expand only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from coordinator.db.types import UtcDateTime


revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand: one new table."""
    op.create_table('site_log_heads',
    sa.Column('site_id', sa.String(length=63), nullable=False),
    sa.Column('size', sa.BigInteger(), nullable=False),
    sa.Column('head', sa.String(length=64), nullable=False),
    sa.Column('statement', sa.LargeBinary(), nullable=False),
    sa.Column('seen_at', UtcDateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['site_id'], ['sites.site_id'], name=op.f('fk_site_log_heads_site_id')),
    sa.PrimaryKeyConstraint('site_id', name=op.f('pk_site_log_heads'))
    )


def downgrade() -> None:
    """Back: the next M1 of each site is then a first one."""
    op.drop_table('site_log_heads')
