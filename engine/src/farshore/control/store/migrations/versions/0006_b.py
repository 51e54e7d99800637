"""How runs are paused, approved and gone on with."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("run") as batch:
        batch.add_column(sa.Column("pause", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch.add_column(sa.Column("phase", sa.String(), nullable=False, server_default=""))
        batch.add_column(sa.Column("wake_at", sa.Double(), nullable=True))
        batch.add_column(sa.Column("approval", sa.JSON(), nullable=True))
        batch.add_column(sa.Column("retry_of", sa.String(), nullable=True))
    with op.batch_alter_table("run_machine") as batch:
        batch.add_column(sa.Column("settled_at", sa.Double(), nullable=True))
    op.create_index("ix_run_step_run_id_ended_at", "run_step", ["run_id", "ended_at"])


def downgrade() -> None:
    """Take back."""
    op.drop_index("ix_run_step_run_id_ended_at", "run_step")
    with op.batch_alter_table("run_machine") as batch:
        batch.drop_column("settled_at")
    with op.batch_alter_table("run") as batch:
        for name in ("retry_of", "approval", "wake_at", "phase", "pause"):
            batch.drop_column(name)
