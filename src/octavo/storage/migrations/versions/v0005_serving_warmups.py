"""What loading models ahead came to, per day and model."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "serving_warmups",
        sa.Column("day", sa.DateTime(timezone=True), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("loads", sa.BigInteger, nullable=False),
        sa.Column("avoided", sa.BigInteger, nullable=False),
        sa.Column("wasted", sa.BigInteger, nullable=False),
        sa.Column("load_seconds", sa.Float(53), nullable=False),
        sa.Column("seconds_saved", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("day", "model", name="pk_serving_warmups"),
    )
