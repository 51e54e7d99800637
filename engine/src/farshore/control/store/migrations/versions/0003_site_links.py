"""Links between sites, shares of rates, and what is known of a replication that is under way."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "site_link",
        sa.Column("source_site", sa.String(), nullable=False),
        sa.Column("target_site", sa.String(), nullable=False),
        sa.Column("data_listen", sa.String(), nullable=False),
        sa.Column("bandwidth", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["source_site"], ["site.name"], name=op.f("fk_site_link_source_site_site"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["target_site"], ["site.name"], name=op.f("fk_site_link_target_site_site"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("source_site", "target_site", name=op.f("pk_site_link")),
    )
    op.create_table(
        "share",
        sa.Column("resource", sa.String(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("rate", sa.Double(), nullable=False),
        sa.Column("later", sa.Double(), nullable=False),
        sa.Column("held", sa.Double(), nullable=False),
        sa.Column("kept", sa.Double(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["node"], ["node.name"], name=op.f("fk_share_node_node"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("resource", "node", name=op.f("pk_share")),
    )
    with op.batch_alter_table("node", schema=None) as batch_op:
        batch_op.add_column(sa.Column("standing", sa.String(), nullable=False, server_default=""))
    with op.batch_alter_table("task", schema=None) as batch_op:
        batch_op.add_column(sa.Column("session", sa.JSON(none_as_null=True), nullable=True))
        batch_op.add_column(sa.Column("drafts", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("task", schema=None) as batch_op:
        batch_op.drop_column("drafts")
        batch_op.drop_column("session")
    with op.batch_alter_table("node", schema=None) as batch_op:
        batch_op.drop_column("standing")
    op.drop_table("share")
    op.drop_table("site_link")
