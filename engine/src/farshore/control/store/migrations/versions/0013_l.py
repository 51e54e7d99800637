"""Which machines of a failover may still be rolled back."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("plan_machine") as table:
        table.add_column(sa.Column("committed", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.execute(
        sa.text(
            "UPDATE plan_machine SET committed = false"
            " WHERE raised AND plan IN (SELECT name FROM plan WHERE NOT committed)"
        )
    )


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("plan_machine") as table:
        table.drop_column("committed")
