"""Which way a plan runs."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("plan", schema=None) as batch_op:
        batch_op.add_column(sa.Column("committed", sa.Boolean(), nullable=False, server_default=sa.true()))
    with op.batch_alter_table("plan_machine", schema=None) as batch_op:
        batch_op.add_column(sa.Column("old_machine_id", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("home", sa.JSON(none_as_null=True), nullable=True))
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.add_column(sa.Column("from_site", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("to_site", sa.String(), nullable=False, server_default=""))
    op.create_table(
        "old_primary",
        sa.Column("plan", sa.String(), nullable=False),
        sa.Column("machine", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("machine_id", sa.String(), nullable=False),
        sa.Column("divergent", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["plan"], ["plan.name"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("plan", "machine", "epoch"),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("old_primary")
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.drop_column("to_site")
        batch_op.drop_column("from_site")
    with op.batch_alter_table("plan_machine", schema=None) as batch_op:
        batch_op.drop_column("home")
        batch_op.drop_column("old_machine_id")
    with op.batch_alter_table("plan", schema=None) as batch_op:
        batch_op.drop_column("committed")
