"""What was used: amounts per hour, model, version and caller, and what the machine had to offer meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

HOUR = 3600.0
"""Seconds."""

Owner = tuple[str, str, str]
"""Model, version, caller; the caller is empty for what nobody's request caused (pins, warm-ups, checks)."""

UsageKey = tuple[int, str, str, str]
"""Hour (whole hours since 1970, UTC), model, version, caller."""


@dataclass(slots=True)
class Usage:
    """Amounts: `cpu_seconds` of batches, loads and worker processes, `byte_seconds` of memory charged over time."""

    requests: int = 0
    failures: int = 0
    cold_starts: int = 0
    cpu_seconds: float = 0.0
    byte_seconds: float = 0.0

    def add(self, other: Usage) -> None:
        """Take in other amounts."""
        self.requests += other.requests
        self.failures += other.failures
        self.cold_starts += other.cold_starts
        self.cpu_seconds += other.cpu_seconds
        self.byte_seconds += other.byte_seconds


@dataclass(slots=True)
class Capacity:
    """What machines offered while they served: seconds they were up, memory budget and cores over that time.

    `open_seconds` are those in which at least one of several machines was up, told only by the database.
    """

    seconds: float = 0.0
    byte_seconds: float = 0.0
    core_seconds: float = 0.0
    open_seconds: float = 0.0

    def add(self, other: Capacity) -> None:
        """Take in more."""
        self.seconds += other.seconds
        self.byte_seconds += other.byte_seconds
        self.core_seconds += other.core_seconds
