"""What nodes have for guests and hooks."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("node", schema=None) as batch_op:
        batch_op.add_column(sa.Column("kit", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("node", schema=None) as batch_op:
        batch_op.drop_column("kit")
