"""Users, groups, roles, API keys, console sessions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    _people()
    _roles()
    _keys()
    _sessions()


def _people() -> None:
    op.create_table(
        "access_users",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("password_hash", sa.String(255)),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_access_users"),
        sa.UniqueConstraint("name", name="uq_access_users_name"),
    )
    op.create_table(
        "access_groups",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_access_groups"),
        sa.UniqueConstraint("name", name="uq_access_groups_name"),
    )
    op.create_table(
        "access_members",
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("group_id", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "group_id", name="pk_access_members"),
        _reference("access_members", "user_id", "access_users"),
        _reference("access_members", "group_id", "access_groups"),
    )


def _roles() -> None:
    op.create_table(
        "access_roles",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("user_id", sa.Integer),
        sa.Column("group_id", sa.Integer),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("pattern", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_access_roles"),
        sa.UniqueConstraint("user_id", "pattern", name="uq_access_roles_user_id"),
        sa.UniqueConstraint("group_id", "pattern", name="uq_access_roles_group_id"),
        sa.CheckConstraint("(user_id IS NULL) <> (group_id IS NULL)", name="ck_access_roles_one_holder"),
        _reference("access_roles", "user_id", "access_users"),
        _reference("access_roles", "group_id", "access_groups"),
    )


def _keys() -> None:
    op.create_table(
        "access_keys",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("owner_id", sa.Integer, nullable=False),
        sa.Column("label", sa.String(200), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("expires", TIME),
        sa.Column("last_used", TIME),
        sa.Column("revoked", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_access_keys"),
        sa.UniqueConstraint("prefix", name="uq_access_keys_prefix"),
        _reference("access_keys", "owner_id", "access_users"),
    )
    op.create_index("ix_access_keys_owner_id", "access_keys", ["owner_id"])


def _sessions() -> None:
    op.create_table(
        "access_sessions",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("key_id", sa.Integer),
        sa.Column("created", TIME, nullable=False),
        sa.Column("expires", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_access_sessions"),
        sa.UniqueConstraint("hash", name="uq_access_sessions_hash"),
        _reference("access_sessions", "user_id", "access_users"),
        _reference("access_sessions", "key_id", "access_keys"),
    )
    op.create_index("ix_access_sessions_expires", "access_sessions", ["expires"])


def _reference(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{target}.id"], name=f"fk_{table}_{column}", ondelete="CASCADE")
