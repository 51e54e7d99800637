"""Find what waits, and what is at work, without looking at what has ended."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.drop_index("ix_task_site_state", "task")
    op.create_index("ix_task_site_state_role", "task", ["site", "state", "role", "run_id", "created_at"])
    op.create_index("ix_task_state_kind", "task", ["state", "kind"])


def downgrade() -> None:
    """Take back."""
    op.drop_index("ix_task_state_kind", "task")
    op.drop_index("ix_task_site_state_role", "task")
    op.create_index("ix_task_site_state", "task", ["site", "state"])
