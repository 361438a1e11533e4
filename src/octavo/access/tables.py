"""The rows of access: users, groups, their roles, API keys and console sessions."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from octavo.storage.rows import Base, UtcDateTime


class UserRow(Base):
    """Somebody, or a program that has its own name. Without a password it signs in by key only."""

    __tablename__ = "access_users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    password_hash: Mapped[str | None] = mapped_column(String(255))
    disabled: Mapped[bool] = mapped_column(default=False)
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    groups: Mapped[list[GroupRow]] = relationship(
        secondary="access_members", back_populates="users", order_by="GroupRow.name", passive_deletes=True
    )
    roles: Mapped[list[RoleRow]] = relationship(order_by="RoleRow.pattern", passive_deletes=True)


class GroupRow(Base):
    """A named set of users; its roles hold for all of them."""

    __tablename__ = "access_groups"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    users: Mapped[list[UserRow]] = relationship(
        secondary="access_members", back_populates="groups", order_by="UserRow.name", passive_deletes=True
    )
    roles: Mapped[list[RoleRow]] = relationship(order_by="RoleRow.pattern", passive_deletes=True)


class MemberRow(Base):
    """A user is in a group."""

    __tablename__ = "access_members"

    user_id: Mapped[int] = mapped_column(ForeignKey("access_users.id", ondelete="CASCADE"), primary_key=True)
    group_id: Mapped[int] = mapped_column(ForeignKey("access_groups.id", ondelete="CASCADE"), primary_key=True)


class RoleRow(Base):
    """A user or a group has a role on all resources a pattern matches."""

    __tablename__ = "access_roles"
    __table_args__ = (
        UniqueConstraint("user_id", "pattern"),
        UniqueConstraint("group_id", "pattern"),
        CheckConstraint("(user_id IS NULL) <> (group_id IS NULL)", name="one_holder"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("access_users.id", ondelete="CASCADE"))
    group_id: Mapped[int | None] = mapped_column(ForeignKey("access_groups.id", ondelete="CASCADE"))
    role: Mapped[str] = mapped_column(String(16))
    pattern: Mapped[str] = mapped_column(String(200))


class KeyRow(Base):
    """An API key of a user; the secret itself is not kept, only its SHA-256 in hexadecimal."""

    __tablename__ = "access_keys"
    __table_args__ = (Index("ix_access_keys_owner_id", "owner_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    prefix: Mapped[str] = mapped_column(String(16), unique=True)
    hash: Mapped[str] = mapped_column(String(64))
    owner_id: Mapped[int] = mapped_column(ForeignKey("access_users.id", ondelete="CASCADE"))
    label: Mapped[str] = mapped_column(String(200))
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    expires: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked: Mapped[datetime | None] = mapped_column(UtcDateTime)
    owner: Mapped[UserRow] = relationship()


class SessionRow(Base):
    """A console session of a user, begun with a password or a key; only the token's SHA-256 is kept."""

    __tablename__ = "access_sessions"
    __table_args__ = (Index("ix_access_sessions_expires", "expires"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("access_users.id", ondelete="CASCADE"))
    key_id: Mapped[int | None] = mapped_column(ForeignKey("access_keys.id", ondelete="CASCADE"))
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    expires: Mapped[datetime] = mapped_column(UtcDateTime)
    user: Mapped[UserRow] = relationship()
