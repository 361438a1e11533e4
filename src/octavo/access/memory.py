"""What is remembered of tokens, so that the hot path asks no database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from octavo.access.permissions import Principal


@dataclass(frozen=True, slots=True)
class _Entry:
    principal: Principal
    until: float


class PrincipalMemory:
    """Principals by the digest of their token: some for the life of the process, others for `ttl` seconds.

    Reading takes no lock. Looked up by digest, never by the token, so timing tells nothing about a token.
    """

    def __init__(self, ttl: float = 10.0, most: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl, self._most, self._clock = ttl, most, clock
        self._kept: dict[str, Principal] = {}
        self._tokens: dict[str, _Entry] = {}
        self._sessions: dict[str, tuple[_Entry, datetime]] = {}
        self._own_sessions: dict[str, tuple[Principal, datetime]] = {}
        self._lock = threading.Lock()
        self.generation = 0
        """Counts `forget`; what was read before one is not remembered after it."""

    def keep(self, digest: str, principal: Principal) -> None:
        """Know a token as long as the process lives."""
        self._kept[digest] = principal

    def keep_session(self, digest: str, principal: Principal, ends: datetime) -> None:
        """Know a session until it ends, however often `forget` is called."""
        with self._lock:
            self._own_sessions[digest] = (principal, ends)
            _trim(self._own_sessions, self._most)

    def find(self, digest: str) -> Principal | None:
        """Whose token it is, when that is remembered."""
        kept = self._kept.get(digest)
        if kept is not None:
            return kept
        entry = self._tokens.get(digest)
        return entry.principal if entry is not None and entry.until > self._clock() else None

    def find_session(self, digest: str, now: datetime) -> Principal | None:
        """Whose session it is, when that is remembered and not over at `now`."""
        own = self._own_sessions.get(digest)
        if own is not None:
            return own[0] if own[1] > now else None
        found = self._sessions.get(digest)
        return found[0].principal if found and found[0].until > self._clock() and found[1] > now else None

    def remember(
        self, digest: str, principal: Principal, expires: datetime | None, now: datetime, generation: int
    ) -> None:
        """Know a key's token for `ttl` seconds, not longer than the key lives."""
        left = (expires - now).total_seconds() if expires else self._ttl
        with self._lock:
            if generation == self.generation:
                self._tokens.pop(digest, None)
                self._tokens[digest] = _Entry(principal, self._clock() + min(self._ttl, left))
                _trim(self._tokens, self._most)

    def remember_session(self, digest: str, principal: Principal, ends: datetime, generation: int) -> None:
        """Know a session for `ttl` seconds, not longer than it lasts."""
        with self._lock:
            if generation == self.generation:
                self._sessions.pop(digest, None)
                self._sessions[digest] = (_Entry(principal, self._clock() + self._ttl), ends)
                _trim(self._sessions, self._most)

    def end_session(self, digest: str) -> None:
        """Know one session no more."""
        with self._lock:
            self.generation += 1
            self._sessions.pop(digest, None)
            self._own_sessions.pop(digest, None)

    def forget(self) -> None:
        """Know only what is kept for the life of the process."""
        with self._lock:
            self.generation += 1
            self._tokens.clear()
            self._sessions.clear()


def _trim(entries: dict[str, Any], most: int) -> None:
    while len(entries) > most:
        del entries[next(iter(entries))]
