"""What Alembic runs around each migration. The connection comes from ``coordinator.db.migrate``."""

from __future__ import annotations

from alembic import context

from coordinator.db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
