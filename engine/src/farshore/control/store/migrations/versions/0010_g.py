"""Which checkpoints are kept, and what is thought of them."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("checkpoint", schema=None) as batch_op:
        batch_op.add_column(sa.Column("hold", sa.Text(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("held_by", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("held_at", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("score", sa.JSON(none_as_null=True), nullable=True))
        batch_op.add_column(sa.Column("cleared", sa.JSON(none_as_null=True), nullable=True))
    with op.batch_alter_table("consistency_group", schema=None) as batch_op:
        batch_op.add_column(sa.Column("tainted_by", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("crowded", sa.Boolean(), nullable=False, server_default=sa.false()))
    with op.batch_alter_table("cycle", schema=None) as batch_op:
        batch_op.add_column(sa.Column("hold", sa.Text(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("held_by", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("consistency", sa.String(), nullable=True))


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("cycle", schema=None) as batch_op:
        batch_op.drop_column("consistency")
        batch_op.drop_column("held_by")
        batch_op.drop_column("hold")
    with op.batch_alter_table("consistency_group", schema=None) as batch_op:
        batch_op.drop_column("crowded")
        batch_op.drop_column("tainted_by")
    with op.batch_alter_table("checkpoint", schema=None) as batch_op:
        batch_op.drop_column("cleared")
        batch_op.drop_column("score")
        batch_op.drop_column("held_at")
        batch_op.drop_column("held_by")
        batch_op.drop_column("hold")
