"""Drills on a schedule, and what they saw."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "due_drill",
        sa.Column("plan", sa.String(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("schedule", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("tried_at", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["plan"], ["plan.name"], name="fk_due_drill_plan_plan", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("plan", "due_at", name="pk_due_drill"),
    )
    op.create_table(
        "run_sight",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("machine", sa.String(), nullable=False),
        sa.Column("taken_at", sa.Double(), nullable=False),
        sa.Column("console", sa.Text(), nullable=False),
        sa.Column("screen", sa.LargeBinary(), nullable=True),
        sa.Column("note", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name="fk_run_sight_run_id_run", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "machine", name="pk_run_sight"),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("run_sight")
    op.drop_table("due_drill")
