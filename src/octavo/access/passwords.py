"""Passwords: argon2 hashes, and a limit on guessing."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from octavo.errors import Busy, Invalid

MIN_LENGTH = 8
MAX_BYTES = 1024
_PARALLEL = threading.BoundedSemaphore(2)
"""A check takes 64 MiB and tens of milliseconds; many at once would be an attack on the machine."""


class Passwords:
    """Makes and checks hashes. Unknown names take as long as known ones."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._nobody: str | None = None

    def hash(self, password: str) -> str:
        """The hash to keep.

        Raises:
            Invalid: shorter than 8 characters or longer than 1024 bytes.
        """
        if len(password) < MIN_LENGTH or len(password.encode("utf-8", "replace")) > MAX_BYTES:
            raise Invalid("the password does not have the right length", "password", "Use 8 characters to 1024 bytes.")
        with _PARALLEL:
            return self._hasher.hash(password.encode("utf-8", "replace"))

    def check(self, kept: str | None, password: str) -> bool:
        """Whether `password` is the one `kept` is the hash of; None (nobody, no password) is False, as slowly."""
        raw = password.encode("utf-8", "replace")[:MAX_BYTES]
        with _PARALLEL:
            if kept is None:
                self._nobody = self._nobody or self._hasher.hash("somebody else's password")
            try:
                self._hasher.verify(kept or self._nobody or "", raw)
            except (VerificationError, InvalidHashError):
                return False
        return kept is not None

    def is_outdated(self, kept: str) -> bool:
        """Whether `kept` was made with weaker parameters than today's."""
        return self._hasher.check_needs_rehash(kept)


class GuessLimit:
    """At most `most` failed logins per name within `window` seconds; in memory, for at most `names` names."""

    def __init__(
        self, most: int = 5, window: float = 60.0, names: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._window, self._names, self._clock = most, window, names, clock
        self._tries: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def attempt(self, name: str) -> None:
        """Count a try before it is checked, so that many at once do not slip through.

        Raises:
            Busy: too many failed; `retry_after` says when the next is allowed.
        """
        with self._lock:
            now = self._clock()
            tries = self._tries.pop(name, None) or deque()
            while tries and tries[0] <= now - self._window:
                tries.popleft()
            self._tries[name] = tries
            if len(tries) >= self._most:
                wait = math.ceil(tries[0] + self._window - now)
                raise Busy("too many failed logins", name, f"Wait {wait} seconds.", retry_after=float(wait))
            tries.append(now)
            while len(self._tries) > self._names:
                del self._tries[next(iter(self._tries))]

    def succeeded(self, name: str) -> None:
        """Forget the tries of `name`."""
        with self._lock:
            self._tries.pop(name, None)
