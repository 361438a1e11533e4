"""What the server tells of itself: an index line per model, and who holds what of the memory budget."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.serving.resident import Counters


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One line of the repository index.

    `state` is READY, LOADING, UNLOADING or UNAVAILABLE; READY means it answers, from memory or by loading first.
    `resident_bytes` is what it is charged alone and its part of the weights it shares with others.
    """

    name: str
    version: str
    state: str
    reason: str
    resident: bool
    resident_bytes: int
    pinned: bool
    default: bool


@dataclass(frozen=True, slots=True)
class ResidentModel:
    """A model in memory: bytes it is charged alone, its tier ("quick" or "full"), seconds since its last request."""

    name: str
    version: str
    state: str
    tier: str
    bytes: int
    share_key: str
    pinned: bool
    in_flight: int
    idle_seconds: float
    load_cpu_seconds: float


@dataclass(frozen=True, slots=True)
class ResidencySnapshot:
    """The budget and who holds what of it, bytes. `shared` are weights mapped by several models, by share key."""

    budget_bytes: int
    charged_bytes: int
    models: tuple[ResidentModel, ...]
    shared: dict[str, int]
    counters: Counters
    pending: int
