"""A control plane that follows another."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "site_bundle",
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False, server_default=""),
        sa.Column("number", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("written_at", sa.Double(), nullable=True),
        sa.Column("wanted", sa.String(), nullable=False, server_default=""),
        sa.Column("task_id", sa.String(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("not_before", sa.Double(), nullable=False, server_default="0"),
        sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(["site"], ["site.name"], name=op.f("fk_site_bundle_site_site"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("site", name=op.f("pk_site_bundle")),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("site_bundle")
