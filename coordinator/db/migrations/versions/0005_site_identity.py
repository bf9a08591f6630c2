"""Renewal of certificates, and the chain of what a site says. Expand only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from coordinator.db.types import UtcDateTime

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand: nullable columns and a table. Certificates of before have no key digest; they are renewed all the same."""
    op.add_column('sites', sa.Column('statement_floor', sa.BigInteger(), nullable=True))
    op.add_column('sites', sa.Column('trusted_roots_version', sa.BigInteger(), nullable=True))
    op.add_column('certificates', sa.Column('pem', sa.LargeBinary(), nullable=True))
    op.add_column('certificates', sa.Column('key_sha256', sa.String(length=64), nullable=True))
    op.add_column('certificates', sa.Column('root_sha256', sa.String(length=64), nullable=True))
    op.add_column('certificates', sa.Column('first_used_at', UtcDateTime(), nullable=True))
    op.add_column('certificates', sa.Column('superseded_at', UtcDateTime(), nullable=True))
    op.create_table(
        'site_statements',
        sa.Column('site_id', sa.String(length=63), nullable=False),
        sa.Column('counter', sa.BigInteger(), nullable=False),
        sa.Column('sha256', sa.String(length=64), nullable=False),
        sa.Column('previous_sha256', sa.String(length=64), nullable=False),
        sa.Column('at', UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(['site_id'], ['sites.site_id'], name=op.f('fk_site_statements_site_id')),
        sa.PrimaryKeyConstraint('site_id', 'counter', name=op.f('pk_site_statements')),
    )


def downgrade() -> None:
    """Back: the program before knows certificates by their fingerprint alone, as it did."""
    op.drop_table('site_statements')
    for name in ('superseded_at', 'first_used_at', 'root_sha256', 'key_sha256', 'pem'):
        op.drop_column('certificates', name)
    op.drop_column('sites', 'trusted_roots_version')
    op.drop_column('sites', 'statement_floor')
