"""What was found out about checkpoints."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("checkpoint", schema=None) as batch_op:
        batch_op.add_column(sa.Column("integrity", sa.String(), nullable=False, server_default="audited"))
        batch_op.add_column(sa.Column("addenda", sa.JSON(none_as_null=True), nullable=False, server_default="[]"))


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("checkpoint", schema=None) as batch_op:
        batch_op.drop_column("addenda")
        batch_op.drop_column("integrity")
