"""Users, groups, their roles and API keys: made, changed, listed and removed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, joinedload, selectinload

from octavo.access.passwords import Passwords
from octavo.access.permissions import Grant, parse_grant
from octavo.access.tables import GroupRow, KeyRow, MemberRow, RoleRow, SessionRow, UserRow
from octavo.access.tokens import digest, make_key
from octavo.errors import Conflict, Invalid, NotFound
from octavo.storage.database import Database

_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
MAX_LABEL = 200


@dataclass(frozen=True, slots=True)
class User:
    """A user as listed; `grants` are the user's own, without those of the groups."""

    name: str
    disabled: bool
    has_password: bool
    created: datetime
    groups: tuple[str, ...]
    grants: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """A group as listed."""

    name: str
    users: tuple[str, ...]
    grants: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class Key:
    """An API key as listed; `prefix` names it, the secret is not kept."""

    prefix: str
    owner: str
    label: str
    created: datetime
    expires: datetime | None
    last_used: datetime | None
    revoked: datetime | None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made; `secret` is to be shown once."""

    prefix: str
    secret: str


class Accounts:
    """The accounts in a database. Names are lower-case letters, digits and `._@-`; a group is written `group:name`
    where a user may stand too.

    Every method may raise `Invalid` (a malformed name), `NotFound` (nobody has it) or `Conflict` (taken, or nobody
    would be left who is admin).
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.passwords = Passwords()

    def add_user(self, name: str, password: str | None = None, role: str | None = None) -> User:
        """Make a user; `role` is granted on everything."""
        _check_name(name)
        grant = parse_grant(role, "*") if role else None
        kept = self.passwords.hash(password) if password is not None else None
        with self._change() as session, _taken(f"there is a user {name!r} already"):
            row = UserRow(name=name, password_hash=kept, disabled=False, created=datetime.now(UTC), groups=[])
            row.roles = [RoleRow(role=grant.role, pattern=grant.pattern)] if grant else []
            session.add(row)
            session.flush()
            return _user(row)

    def remove_user(self, name: str) -> None:
        """Remove a user with keys, sessions and roles."""
        with self._change_of_rights() as session:
            session.delete(_find_user(session, name))

    def set_password(self, name: str, password: str) -> None:
        """Set a password; console sessions of the user end."""
        kept = self.passwords.hash(password)
        with self._change() as session:
            row = _find_user(session, name)
            row.password_hash = kept
            session.execute(delete(SessionRow).where(SessionRow.user_id == row.id))

    def set_disabled(self, name: str, disabled: bool = True) -> None:
        """Shut a user out, with all keys and sessions, or let in again."""
        with self._change_of_rights() as session:
            _find_user(session, name).disabled = disabled

    def list_users(self) -> list[User]:
        """All users by name."""
        query = select(UserRow).options(selectinload(UserRow.groups), selectinload(UserRow.roles))
        with self.database.session(read_only=True) as session:
            return [_user(row) for row in session.scalars(query.order_by(UserRow.name))]

    def add_group(self, name: str) -> None:
        """Make a group."""
        _check_name(name)
        with self._change() as session, _taken(f"there is a group {name!r} already"):
            session.add(GroupRow(name=name, created=datetime.now(UTC)))
            session.flush()

    def remove_group(self, name: str) -> None:
        """Remove a group with its roles; its users stay."""
        with self._change_of_rights() as session:
            session.delete(_find_group(session, name))

    def join(self, group: str, user: str) -> None:
        """Put a user into a group; one who is in stays in."""
        with self._change() as session:
            row, member = _find_group(session, group), _find_user(session, user)
            if member not in row.users:
                row.users.append(member)

    def leave(self, group: str, user: str) -> None:
        """Take a user out of a group; one who is not in is fine."""
        with self._change_of_rights() as session:
            row, member = _find_group(session, group), _find_user(session, user)
            if member in row.users:
                row.users.remove(member)

    def list_groups(self) -> list[Group]:
        """All groups by name."""
        query = select(GroupRow).options(selectinload(GroupRow.users), selectinload(GroupRow.roles))
        with self.database.session(read_only=True) as session:
            return [
                Group(row.name, tuple(user.name for user in row.users), _grants(row.roles))
                for row in session.scalars(query.order_by(GroupRow.name))
            ]

    def grant(self, holder: str, role: str, pattern: str = "*") -> None:
        """Give a user or `group:name` a role on what `pattern` matches, in place of one on the same pattern."""
        grant = parse_grant(role, pattern)
        with self._change_of_rights() as session:
            row = _find_holder(session, holder)
            for kept in row.roles:
                if kept.pattern == pattern:
                    kept.role = grant.role
                    return
            row.roles.append(RoleRow(role=grant.role, pattern=grant.pattern))

    def revoke(self, holder: str, pattern: str = "*") -> None:
        """Take the role on exactly this pattern away."""
        with self._change_of_rights() as session:
            row = _find_holder(session, holder)
            found = [kept for kept in row.roles if kept.pattern == pattern]
            if not found:
                has = ", ".join(kept.pattern for kept in row.roles) or "none"
                raise NotFound(f"{holder} has no role on {pattern!r}", "pattern", f"Roles are held on: {has}.")
            session.delete(found[0])

    def create_key(self, owner: str, label: str = "", expires: datetime | None = None) -> NewKey:
        """Make a key that acts as `owner`; its secret is not kept."""
        if len(label) > MAX_LABEL or not label.isprintable():
            raise Invalid("the label cannot be used", "label", f"Write up to {MAX_LABEL} printable characters.")
        now = datetime.now(UTC)
        if expires is not None and (expires.tzinfo is None or expires <= now):
            raise Invalid("the key would have expired already", "expires", "Give a time to come, with its zone.")
        secret, prefix = make_key()
        with self._change() as session:
            row = _find_user(session, owner)
            session.add(
                KeyRow(prefix=prefix, hash=digest(secret), owner_id=row.id, label=label, created=now, expires=expires)
            )
        return NewKey(prefix, secret)

    def list_keys(self, owner: str = "") -> list[Key]:
        """The keys of a user, or all, by owner and time made."""
        query = select(KeyRow).join(KeyRow.owner).options(joinedload(KeyRow.owner))
        with self.database.session(read_only=True) as session:
            if owner:
                query = query.where(KeyRow.owner_id == _find_user(session, owner).id)
            return [_key(row) for row in session.scalars(query.order_by(UserRow.name, KeyRow.created, KeyRow.id))]

    def revoke_key(self, prefix: str) -> None:
        """End a key and the console sessions begun with it; it stays in the list."""
        with self._change() as session:
            row = session.scalar(select(KeyRow).where(KeyRow.prefix == prefix))
            if row is None:
                raise NotFound(f"there is no key {prefix!r}", "prefix", "List the keys to see their prefixes.")
            row.revoked = row.revoked or datetime.now(UTC)
            session.execute(delete(SessionRow).where(SessionRow.key_id == row.id))

    def changed(self) -> None:
        """Called after every change; `Access` forgets what it remembers of principals."""

    @contextmanager
    def _change(self) -> Iterator[Session]:
        with self.database.session() as session:
            yield session
        self.changed()

    @contextmanager
    def _change_of_rights(self) -> Iterator[Session]:
        """A change that may take rights away; `Conflict` when it would leave nobody who can give them back."""
        with self._change() as session:
            session.execute(select(UserRow.id).with_for_update())  # of two such changes at once, one waits
            had = _has_admin(session)
            yield session
            session.flush()
            if had and not _has_admin(session):
                raise Conflict("nobody would be admin any more", "admin on *", "Make another admin first.")


@contextmanager
def _taken(what: str) -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise Conflict(what, "name", "Choose another name.") from None


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"not a name: {name[:80]!r}", "name", "Use 1 to 64 lower-case letters, digits and ._@-, a letter first."
        )


def _find_user(session: Session, name: str) -> UserRow:
    row = session.scalar(select(UserRow).where(UserRow.name == name)) if _NAME.fullmatch(name) else None
    if row is None:
        raise NotFound(f"there is no user {name[:80]!r}", "name", "List the users to see their names.")
    return row


def _find_group(session: Session, name: str) -> GroupRow:
    row = session.scalar(select(GroupRow).where(GroupRow.name == name)) if _NAME.fullmatch(name) else None
    if row is None:
        raise NotFound(f"there is no group {name[:80]!r}", "name", "Make it first.")
    return row


def _find_holder(session: Session, holder: str) -> UserRow | GroupRow:
    kind, colon, name = holder.partition(":")
    return _find_group(session, name) if colon and kind == "group" else _find_user(session, holder)


def _grants(rows: list[RoleRow]) -> tuple[Grant, ...]:
    return tuple(parse_grant(row.role, row.pattern) for row in rows)


def grants_of(row: UserRow) -> tuple[Grant, ...]:
    """A user's own grants and those of the groups."""
    return _grants([*row.roles, *(role for group in row.groups for role in group.roles)])


def _has_admin(session: Session) -> bool:
    """Whether somebody who is not shut out is admin of everything, alone or by a group."""
    everything = (RoleRow.role == "admin") & (RoleRow.pattern == "*")
    own = select(RoleRow.user_id).where(everything)
    grouped = select(MemberRow.user_id).join(RoleRow, RoleRow.group_id == MemberRow.group_id).where(everything)
    able = (UserRow.id.in_(own) | UserRow.id.in_(grouped)) & UserRow.disabled.is_(False)
    return session.scalar(select(UserRow.id).where(able).limit(1)) is not None


def _user(row: UserRow) -> User:
    groups = tuple(group.name for group in row.groups)
    return User(row.name, row.disabled, row.password_hash is not None, row.created, groups, _grants(row.roles))


def _key(row: KeyRow) -> Key:
    return Key(row.prefix, row.owner.name, row.label, row.created, row.expires, row.last_used, row.revoked)
