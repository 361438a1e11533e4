"""A model in memory, on its way in or on its way out; and what happened to all of them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from octavo.serving.loading import LoadedModel
from octavo.serving.repository import ModelVersion

LOADING, READY, UNLOADING = "LOADING", "READY", "UNLOADING"


@dataclass(slots=True, eq=False)
class Resident:
    """A model that is in memory, on its way in, or on its way out.

    `asked_by` is the caller whose request it is loaded for; None when no request waits for it. `ahead` says that it was
    loaded before anybody asked, and that nobody has since; `announced` that its load was begun for a request that will
    lease it in a moment. `load_seconds` passed from the beginning of its load until it could answer.
    """

    version: ModelVersion
    asked_by: str | None = None
    share_key: str = ""
    state: str = LOADING
    model: LoadedModel | None = None
    loading: asyncio.Task[None] | None = None
    in_flight: int = 0
    last_used: float = field(default_factory=time.monotonic)
    load_cpu: float = 0.0
    load_seconds: float = 0.0
    ahead: bool = False
    tier: str = ""
    upgrade: asyncio.Task[None] | None = None
    announced: bool = False

    @property
    def key(self) -> str:
        """Name and version, as the charges and the policy know it."""
        return self.version.key


@dataclass(slots=True)
class Counters:
    """Totals since the server started."""

    hits: int = 0
    colds: int = 0
    evictions: int = 0
    failed_loads: int = 0
