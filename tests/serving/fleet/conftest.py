"""Fleets of replicas in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from octavo.serving.fleet.service import FleetServing
from octavo.settings import load_settings

from .in_process import InProcessCluster

OpenFleet = Callable[..., Awaitable[tuple[FleetServing, InProcessCluster]]]


@pytest.fixture
async def open_fleet(session_folder: Path) -> AsyncIterator[OpenFleet]:
    """A fleet on a workspace, with these `[fleet]` settings, all of whose least replicas answer."""
    async with AsyncExitStack() as stack:

        async def open_(workspace: Path, **fleet: object) -> tuple[FleetServing, InProcessCluster]:
            serving = {"cache": str(session_folder / "cache"), "watch_seconds": 0.05, "memory_budget": 2**30}
            given = {"min_replicas": 2, "report_seconds": 0.05} | fleet
            cluster = InProcessCluster()
            found = await FleetServing.over(cluster, load_settings(workspace, serving=serving, fleet=given))
            stack.push_async_callback(found.close)
            while len(found.fleet.replicas.ready) < found.fleet.replicas.tracker.capacity:
                await found.fleet.replicas.changed(float("inf"))
            return found, cluster

        yield open_
