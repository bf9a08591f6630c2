"""Two signatures on a release, where it came from, what became of that; signing passphrases. Expand only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from coordinator.db.types import UtcDateTime


revision = '0008'
down_revision = '0007'
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand: nullable columns and new tables. A release of the version before has one approval and no statements."""
    op.add_column('releases', sa.Column('continuation_sha256', sa.String(length=64), nullable=True))
    op.add_column('releases', sa.Column('approvals_body', sa.LargeBinary(), nullable=True))
    op.add_column('releases', sa.Column('approvals_signature', sa.LargeBinary(), nullable=True))
    op.create_index('ix_releases_continuation_sha256', 'releases', ['continuation_sha256'], unique=False)
    op.create_table('release_signatures',
    sa.Column('release_id', sa.String(length=64), nullable=False),
    sa.Column('user_id', sa.String(length=64), nullable=False),
    sa.Column('signer', sa.String(), nullable=False),
    sa.Column('role', sa.String(length=32), nullable=False),
    sa.Column('meaning', sa.Text(), nullable=False),
    sa.Column('statement', sa.LargeBinary(), nullable=False),
    sa.Column('at', UtcDateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['release_id'], ['releases.release_id'], name=op.f('fk_release_signatures_release_id')),
    sa.ForeignKeyConstraint(['user_id'], ['users.user_id'], name=op.f('fk_release_signatures_user_id')),
    sa.PrimaryKeyConstraint('release_id', 'user_id', name=op.f('pk_release_signatures')),
    sa.UniqueConstraint('release_id', 'role', name=op.f('uq_release_signatures_release_id_role'))
    )
    op.create_table('release_parents',
    sa.Column('release_id', sa.String(length=64), nullable=False),
    sa.Column('parent_release_id', sa.String(length=64), nullable=False),
    sa.ForeignKeyConstraint(['parent_release_id'], ['releases.release_id'],
        name=op.f('fk_release_parents_parent_release_id')),
    sa.ForeignKeyConstraint(['release_id'], ['releases.release_id'], name=op.f('fk_release_parents_release_id')),
    sa.PrimaryKeyConstraint('release_id', 'parent_release_id', name=op.f('pk_release_parents'))
    )
    op.create_index('ix_release_parents_parent_release_id', 'release_parents', ['parent_release_id'], unique=False)
    op.create_table('release_marks',
    sa.Column('release_id', sa.String(length=64), nullable=False),
    sa.Column('kind', sa.String(length=32), nullable=False),
    sa.Column('cause', sa.String(length=255), nullable=False),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.Column('at', UtcDateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['release_id'], ['releases.release_id'], name=op.f('fk_release_marks_release_id')),
    sa.PrimaryKeyConstraint('release_id', 'kind', 'cause', name=op.f('pk_release_marks'))
    )
    op.create_table('dataset_withdrawals',
    sa.Column('site_id', sa.String(length=63), nullable=False),
    sa.Column('statement_sha256', sa.String(length=64), nullable=False),
    sa.Column('dataset', sa.String(length=128), nullable=False),
    sa.Column('dataset_sha256', sa.String(length=64), nullable=True),
    sa.Column('reason', sa.String(length=32), nullable=False),
    sa.Column('withdrawn_at', UtcDateTime(timezone=True), nullable=False),
    sa.Column('statement_body', sa.LargeBinary(), nullable=False),
    sa.Column('statement_signature', sa.LargeBinary(), nullable=False),
    sa.Column('reported_at', UtcDateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['site_id'], ['sites.site_id'], name=op.f('fk_dataset_withdrawals_site_id')),
    sa.PrimaryKeyConstraint('site_id', 'statement_sha256', name=op.f('pk_dataset_withdrawals'))
    )
    op.create_table('signing_passphrases',
    sa.Column('user_id', sa.String(length=64), nullable=False),
    sa.Column('salt', sa.LargeBinary(), nullable=False),
    sa.Column('verifier', sa.LargeBinary(), nullable=False),
    sa.Column('set_at', UtcDateTime(timezone=True), nullable=False),
    sa.Column('n_failures', sa.Integer(), nullable=False),
    sa.Column('locked_until', UtcDateTime(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['user_id'], ['users.user_id'], name=op.f('fk_signing_passphrases_user_id')),
    sa.PrimaryKeyConstraint('user_id', name=op.f('pk_signing_passphrases'))
    )


def downgrade() -> None:
    """Back: what was signed and marked stays in the audit log."""
    for table in ('signing_passphrases', 'dataset_withdrawals', 'release_marks'):
        op.drop_table(table)
    op.drop_index('ix_release_parents_parent_release_id', table_name='release_parents')
    op.drop_table('release_parents')
    op.drop_table('release_signatures')
    op.drop_index('ix_releases_continuation_sha256', table_name='releases')
    for column in ('approvals_signature', 'approvals_body', 'continuation_sha256'):
        op.drop_column('releases', column)
