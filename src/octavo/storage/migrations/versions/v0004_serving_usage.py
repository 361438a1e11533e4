"""Usage of models per hour and caller, and what the machines offered meanwhile."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "serving_usage",
        sa.Column("hour", TIME, nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("version", sa.String(255), nullable=False),
        sa.Column("caller", sa.String(255), nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.BigInteger, nullable=False),
        sa.Column("cold_starts", sa.BigInteger, nullable=False),
        sa.Column("cpu_seconds", sa.Float(53), nullable=False),
        sa.Column("byte_seconds", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("hour", "model", "version", "caller", name="pk_serving_usage"),
    )
    op.create_table(
        "serving_capacity",
        sa.Column("hour", TIME, nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
        sa.Column("byte_seconds", sa.Float(53), nullable=False),
        sa.Column("core_seconds", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("hour", name="pk_serving_capacity"),
    )
