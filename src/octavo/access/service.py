"""Access as one object: accounts, who a token belongs to, logins and sessions."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from octavo.access.accounts import Accounts, grants_of
from octavo.access.memory import PrincipalMemory
from octavo.access.passwords import GuessLimit
from octavo.access.permissions import Grant, Kind, Principal
from octavo.access.signing_key import AwsCredentials, SigningKey
from octavo.access.tables import KeyRow, RoleRow, SessionRow, UserRow
from octavo.access.tokens import MAX_TOKEN, digest, make_key, make_session_token, prefix_of
from octavo.errors import NotFound, Unauthenticated
from octavo.settings import Settings
from octavo.storage.database import Database

ADMIN = "admin"
_EVERYTHING = (Grant("admin", "*"),)
_USE_NOTED_EVERY = timedelta(minutes=5)


class Access(Accounts):
    """Accounts and everything about tokens. The database's schema must be there (`Database.upgrade`).

    What a token may do is remembered for 10 s, so a change made by another process is seen within that time; a change
    made here is seen at once. Methods block: `authenticate` and `session` take microseconds when the token is
    remembered and a query otherwise, `login` tens of milliseconds, so call it in a thread.
    """

    def __init__(self, database: Database, settings: Settings, now: Callable[[], datetime]) -> None:
        super().__init__(database)
        self._now = now
        self._lifetime = timedelta(hours=settings.web.session_hours)
        self._guesses = GuessLimit()
        self._memory = PrincipalMemory()
        self.signing_key = SigningKey(settings.workspace)
        self._fixed_token = bool(settings.token.get_secret_value())
        if self._fixed_token:
            self._memory.keep(digest(settings.token.get_secret_value()), Principal(ADMIN, "local", _EVERYTHING))

    @classmethod
    def open(
        cls, database: Database, settings: Settings, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> Access:
        """Access over `database`; `settings.token`, when set, is an admin token."""
        return cls(database, settings, now)

    def first_start(self) -> str | None:
        """Make sure somebody is admin of everything: when nobody is, the user `admin`; its token, to be shown once.

        None when there is an admin, when another process makes it at this moment, or when `settings.token` is the
        admin token already.
        """
        secret, prefix = make_key()
        now = self._now()
        is_admin = (RoleRow.role == "admin") & (RoleRow.pattern == "*")
        try:
            with self.database.session() as session:
                if session.scalar(select(RoleRow.id).where(is_admin).limit(1)) is not None:
                    return None
                admin = session.scalar(select(UserRow).where(UserRow.name == ADMIN))
                admin = admin or UserRow(name=ADMIN, disabled=False, created=now)
                session.add(admin)
                admin.roles.append(RoleRow(role="admin", pattern="*"))
                session.flush()
                if self._fixed_token:
                    return None
                label = "made at first start"
                session.add(KeyRow(prefix=prefix, hash=digest(secret), owner_id=admin.id, label=label, created=now))
        except IntegrityError:
            return None
        return secret

    def issue_run_token(self) -> str:
        """An admin token for this machine's own commands; it lives in memory and ends with this process."""
        token, _ = make_key()
        self._memory.keep(digest(token), Principal(ADMIN, "local", _EVERYTHING))
        return token

    def authenticate(self, token: str) -> Principal | None:
        """Whose API key, admin or run token this is; None when nobody's, expired, revoked or the owner disabled."""
        if not token or len(token) > MAX_TOKEN:
            return None
        key = digest(token)
        remembered = self._memory.find(key)
        if remembered is not None:
            return remembered
        prefix = prefix_of(token)
        return self._look_up_key(prefix, key) if prefix else None

    def aws_credentials(self, prefix: str) -> AwsCredentials:
        """What AWS's clients sign with in place of an API key.

        Raises:
            NotFound: no such key, or it is no longer valid.
        """
        if self.signer(prefix) is None:
            raise NotFound(f"there is no valid key {prefix[:40]!r}", "prefix", "List the keys to see their prefixes.")
        return AwsCredentials(prefix, self.signing_key.secret_of(prefix))

    def signer(self, prefix: str) -> Principal | None:
        """Who signs with the secret derived from an API key; None when it is not known or no longer valid."""
        return self.remembered_signer(prefix) or (self._look_up_key(prefix, None) if len(prefix) <= MAX_TOKEN else None)

    def remembered_signer(self, prefix: str) -> Principal | None:
        """`signer`, when that needs no query; None says nothing."""
        return self._memory.find(_signer(prefix))

    def login(self, name: str, password: str) -> str:
        """Begin a console session with a password; its token.

        Raises:
            Unauthenticated: wrong name or password (it does not say which), or the user is disabled.
            Busy: five failed within a minute for this name; `retry_after` says when to try again.
        """
        name = name[:MAX_TOKEN]
        self._guesses.attempt(name)
        with self.database.session(read_only=True) as session:
            row = session.scalar(select(UserRow).where(UserRow.name == name)) if name.isprintable() else None
        right = self.passwords.check(row.password_hash if row else None, password)
        if row is None or not right or row.disabled:
            raise Unauthenticated("the name or the password is wrong", "login", "Try again, or ask an admin.")
        self._guesses.succeeded(name)
        if self.passwords.is_outdated(row.password_hash or ""):
            self._rehash(row.id, row.password_hash, password)
        return self._begin_session(row.id, None, self._now() + self._lifetime)

    def login_with_token(self, token: str) -> str:
        """Begin a console session with an API key, the admin token or a run token; the session's token.

        A key's session ends with the key; one begun with the admin or a run token ends with this process.

        Raises:
            Unauthenticated: nobody's token.
        """
        principal = self.authenticate(token)
        if principal is None:
            raise Unauthenticated("this token is not known", "login", "Check it, or ask an admin for another.")
        ends = self._now() + self._lifetime
        if principal.kind == "local":
            own = make_session_token()
            self._memory.keep_session(digest(own), principal, ends)
            return own
        with self.database.session(read_only=True) as session:
            row = session.scalar(select(KeyRow).where(KeyRow.prefix == prefix_of(token)))
        if row is None:
            raise Unauthenticated("this token is not known", "login", "Check it, or ask an admin for another.")
        return self._begin_session(row.owner_id, row.id, min(ends, row.expires or ends))

    def session(self, token: str) -> Principal | None:
        """Whose console session this is; None when nobody's or over."""
        if not token or len(token) > MAX_TOKEN:
            return None
        key = digest(token)
        now = self._now()
        remembered = self._memory.find_session(key, now)
        if remembered is not None:
            return remembered
        generation = self._memory.generation
        with self.database.session(read_only=True) as session:
            row = session.scalar(select(SessionRow).where(SessionRow.hash == key))
            if row is None or row.expires <= now or row.user.disabled:
                return None
            principal = _principal(row.user, "user")
        self._memory.remember_session(key, principal, row.expires, generation)
        return principal

    def logout(self, token: str) -> None:
        """End a console session; an unknown token is fine."""
        key = digest(token)
        with self.database.session() as session:
            session.execute(delete(SessionRow).where(SessionRow.hash == key))
        self._memory.end_session(key)

    def changed(self) -> None:
        """Forget what is remembered of principals."""
        self._memory.forget()

    def remembered(self, token: str) -> Principal | None:
        """Whose token this is, when that needs no query; None says nothing. For callers that must not block."""
        return self._memory.find(digest(token)) if len(token) <= MAX_TOKEN else None

    def remembered_session(self, token: str) -> Principal | None:
        """Whose console session this is, when that needs no query; None says nothing."""
        return self._memory.find_session(digest(token), self._now()) if len(token) <= MAX_TOKEN else None

    def _look_up_key(self, prefix: str, key: str | None) -> Principal | None:
        """Whose key it is; `key` is the token's digest, None when the secret is proved by a signature."""
        now = self._now()
        generation = self._memory.generation
        with self.database.session(read_only=True) as session:
            row = session.scalar(select(KeyRow).where(KeyRow.prefix == prefix))
            if row is None or (key is not None and not hmac.compare_digest(row.hash, key)):
                return None
            if row.revoked or row.owner.disabled or (row.expires and row.expires <= now):
                return None
            principal = _principal(row.owner, "key")
        if row.last_used is None or now - row.last_used > _USE_NOTED_EVERY:
            self._note_use(row.id, now)
        self._memory.remember(key or _signer(prefix), principal, row.expires, now, generation)
        return principal

    def _note_use(self, key_id: int, now: datetime) -> None:
        with self.database.session() as session:
            row = session.get(KeyRow, key_id)
            if row is not None:
                row.last_used = now

    def _rehash(self, user_id: int, old: str | None, password: str) -> None:
        kept = self.passwords.hash(password)
        with self.database.session() as session:
            row = session.get(UserRow, user_id)
            if row is not None and row.password_hash == old:
                row.password_hash = kept

    def _begin_session(self, user_id: int, key_id: int | None, ends: datetime) -> str:
        token = make_session_token()
        now = self._now()
        try:
            with self.database.session() as session:
                session.execute(delete(SessionRow).where(SessionRow.expires <= now))
                row = SessionRow(hash=digest(token), user_id=user_id, key_id=key_id, created=now, expires=ends)
                session.add(row)
                session.flush()
        except IntegrityError:  # the user or the key was removed a moment ago
            raise Unauthenticated("this user is gone", "login", "Ask an admin.") from None
        return token


def _signer(prefix: str) -> str:
    """Where a signer is remembered; no token's digest looks so."""
    return f"aws:{prefix}"


def _principal(row: UserRow, kind: Kind) -> Principal:
    return Principal(row.name, kind, grants_of(row))
