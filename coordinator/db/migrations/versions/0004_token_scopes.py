"""What a token may do, where that is less than its user. Expand only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand: one nullable column. A token without scopes is as wide as its user, as before."""
    op.add_column('tokens', sa.Column('scopes', sa.Text(), nullable=True))


def downgrade() -> None:
    """Back: narrowed tokens are unknown to the program before, which looks for another digest."""
    op.drop_column('tokens', 'scopes')
