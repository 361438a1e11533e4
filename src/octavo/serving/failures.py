"""Models that failed to load lately: refused with the cause for a while that doubles, never for ever."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from octavo.errors import OctavoError, Unavailable
from octavo.serving.repository import ModelVersion

log = logging.getLogger("octavo.serving.residency")

_LONGEST = 60.0


@dataclass(slots=True)
class _Failure:
    error: OctavoError
    digest: str
    count: int
    until: float


class Failures:
    """Failed loads by model and version. New files, a success or an operator's `load` clear one.

    Args:
        first: seconds before the first retry; 0 tries at once.
    """

    def __init__(self, first: float) -> None:
        self._first = first
        self._failures: dict[str, _Failure] = {}

    def remember(self, version: ModelVersion, error: OctavoError) -> None:
        """A load failed."""
        before = self._failures.get(version.key)
        count = before.count + 1 if before and before.digest == version.digest else 1
        wait = min(_LONGEST, self._first * 2 ** min(count - 1, 16))
        self._failures[version.key] = _Failure(error, version.digest, count, time.monotonic() + wait)
        log.warning("model %s failed to load (%d. time, next try in %.0f s): %s", version.key, count, wait, error)

    def refuse(self, version: ModelVersion) -> None:
        """Raise `Unavailable` with the cause when loading these very files failed too lately to be tried again."""
        failure = self._failures.get(version.key)
        left = self._left(version)
        if failure is not None and left > 0:
            error = failure.error
            raise Unavailable(f"the model failed to load: {error.what}", error.where or version.key, error.fix, left)

    def refuses(self, version: ModelVersion) -> bool:
        """Whether `refuse` would raise."""
        return self._left(version) > 0

    def reason(self, name: str, version: str) -> str:
        """Why a model could not be loaded lately; empty when it could."""
        failure = self._failures.get(f"{name}/{version}")
        return str(failure.error) if failure else ""

    def reasons(self) -> dict[str, str]:
        """Why models could not be loaded lately, by name and version."""
        return {key: str(failure.error) for key, failure in self._failures.items()}

    def clear(self, key: str) -> None:
        """A load succeeded."""
        self._failures.pop(key, None)

    def forget(self, name: str) -> None:
        """Let all versions of a model be tried again at once."""
        for key in [key for key in self._failures if key.split("/")[0] == name]:
            del self._failures[key]

    def _left(self, version: ModelVersion) -> float:
        failure = self._failures.get(version.key)
        return failure.until - time.monotonic() if failure and failure.digest == version.digest else 0.0
