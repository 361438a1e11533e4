"""Declared things, and what models used."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "documents",
        sa.Column("kind", sa.String(60), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("updated", TIME, nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", name="pk_documents"),
    )
    op.create_table(
        "serving_usage",
        sa.Column("hour", TIME, nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("version", sa.String(20), nullable=False),
        sa.Column("caller", sa.String(200), nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.BigInteger, nullable=False),
        sa.Column("cold_starts", sa.BigInteger, nullable=False),
        sa.Column("cpu_seconds", sa.Double, nullable=False),
        sa.Column("byte_seconds", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("hour", "model", "version", "caller", name="pk_serving_usage"),
    )
    op.create_index("ix_serving_usage_model", "serving_usage", ["model", "hour"])
