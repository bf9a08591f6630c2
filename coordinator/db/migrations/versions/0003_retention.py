"""What was scrubbed and when, blobs that nothing names, the coordinator's epochs, the floor of the schema. Expand only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from coordinator.db.types import UtcDateTime


revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None

def _added() -> tuple[tuple[str, sa.Column], ...]:
    # A column object belongs to one table and one use, so that they are made anew.
    return (
        ('rounds', sa.Column('scrubbed_at', UtcDateTime(timezone=True), nullable=True)),
        ('exchanges', sa.Column('scrubbed_at', UtcDateTime(timezone=True), nullable=True)),
        ('exchange_messages', sa.Column('scrubbed_at', UtcDateTime(timezone=True), nullable=True)),
        ('exchange_messages', sa.Column('n_bytes', sa.BigInteger(), nullable=True)),
        ('exchange_messages', sa.Column('transcript_leaf_sha256', sa.String(length=64), nullable=True)),
        ('uploads', sa.Column('scrubbed_at', UtcDateTime(timezone=True), nullable=True)),
        ('uploads', sa.Column('blob_deleted_at', UtcDateTime(timezone=True), nullable=True)),
    )


def upgrade() -> None:
    """Expand: nullable columns and new tables, so that a process of the version before goes on."""
    for table, column in _added():
        op.add_column(table, column)
    floor = op.create_table('schema_floor',
    sa.Column('id', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('revision', sa.String(length=32), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_schema_floor'))
    )
    # Programs of this revision are the first that ask; a migration that contracts raises it.
    op.bulk_insert(floor, [{'id': 1, 'revision': revision}])
    op.create_table('orphan_blobs',
    sa.Column('sha256', sa.String(length=64), nullable=False),
    sa.Column('first_seen_at', UtcDateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('sha256', name=op.f('pk_orphan_blobs'))
    )
    op.create_table('coordinator_epochs',
    sa.Column('epoch', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('started_at', UtcDateTime(timezone=True), nullable=False),
    sa.Column('backup_made_at', UtcDateTime(timezone=True), nullable=False),
    sa.Column('restored_size', sa.BigInteger(), nullable=False),
    sa.Column('restored_head', sa.String(length=64), nullable=False),
    sa.Column('statement_body', sa.LargeBinary(), nullable=False),
    sa.Column('statement_signature', sa.LargeBinary(), nullable=False),
    sa.Column('acknowledged_at', UtcDateTime(timezone=True), nullable=True),
    sa.Column('acknowledged_by', sa.String(), nullable=True),
    sa.PrimaryKeyConstraint('epoch', name=op.f('pk_coordinator_epochs'))
    )
    op.create_table('epoch_heads',
    sa.Column('epoch', sa.Integer(), nullable=False),
    sa.Column('site_id', sa.String(length=63), nullable=False),
    sa.Column('seen_size', sa.BigInteger(), nullable=False),
    sa.Column('seen_head', sa.String(length=64), nullable=False),
    sa.Column('reported_at', UtcDateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['epoch'], ['coordinator_epochs.epoch'], name=op.f('fk_epoch_heads_epoch')),
    sa.ForeignKeyConstraint(['site_id'], ['sites.site_id'], name=op.f('fk_epoch_heads_site_id')),
    sa.PrimaryKeyConstraint('epoch', 'site_id', name=op.f('pk_epoch_heads'))
    )


def downgrade() -> None:
    """Back: what was scrubbed stays scrubbed, and that it was is still in the audit log."""
    op.drop_table('epoch_heads')
    op.drop_table('coordinator_epochs')
    op.drop_table('orphan_blobs')
    op.drop_table('schema_floor')
    for table, column in reversed(_added()):
        op.drop_column(table, column.name)
