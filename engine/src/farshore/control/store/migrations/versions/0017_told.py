"""What a run was told is known to the orchestrator alone."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("run") as table:
        table.drop_column("told")


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("run") as table:
        table.add_column(sa.Column("told", sa.Integer(), nullable=False, server_default="0"))
