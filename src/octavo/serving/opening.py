"""The service behind the doors: a server that runs alone, or where `fleet.ray` names a cluster the front of a fleet."""

from __future__ import annotations

from octavo.serving.service import Serving
from octavo.settings import Settings


async def open_serving(settings: Settings) -> Serving:
    """Open what the settings ask for; raises as `Serving.open` and `FleetServing.open`."""
    if not settings.fleet.ray:
        return await Serving.open(settings)
    from octavo.serving.fleet.service import FleetServing

    return await FleetServing.open(settings)
