"""The policy of approval that counts for a plan."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("plan") as table:
        table.add_column(sa.Column("approval", sa.JSON(none_as_null=True), nullable=True))
    json = sa.JSON(none_as_null=True)
    plan = sa.table("plan", sa.column("name", sa.String()), sa.column("definition", json), sa.column("approval", json))
    for name, definition in op.get_bind().execute(sa.select(plan.c.name, plan.c.definition)).all():
        asked = definition.get("approval")
        if asked is not None:
            op.execute(plan.update().where(plan.c.name == name).values(approval=asked))


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("plan") as table:
        table.drop_column("approval")
