"""When an old primary's change of sites was committed."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("old_primary") as table:
        table.add_column(sa.Column("committed_at", sa.Double(), nullable=True))


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("old_primary") as table:
        table.drop_column("committed_at")
